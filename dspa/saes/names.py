"""Whether an SAE was made for the base model, judged by names, because weights do not say it."""

import re
from functools import cache
from itertools import accumulate

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from harness.refs import BaseShape

# Endings that name the same sizes and, nearly, the same residual stream ("gpt2-small" is how GPT-2 is called by SAEs).
_VARIANTS = {"it", "instruct", "chat", "base", "pt", "small"}
_FAMILIES = {"pythia": "gptneox"}  # families whose models are not named after transformers' model type


def check_same_model(sae: str, trained_on: str | None, base: BaseShape) -> None:
    """ValueError when ``trained_on``, the model name in the SAE's metadata, contradicts the base.

    1. Family: if the name contains a transformers model type (gemma-2-2b: gemma2), the base must be of that type.
    2. Name: if the base is a public id that contains the same family, it must be the SAE's model name, perhaps with
       more after it (gemma-2-2b-my-sft), up to case, punctuation and endings such as -it or -base.
    A fine-tune in a folder, or published under a name of its own, is so accepted by its family and sizes; an SAE
    without a model name, or with one of no known family, by its sizes alone.
    """
    family, model = _parse(trained_on or "")
    if family is None:
        return
    mend = "use SAEs made for this base, or the base (or a fine-tune of it, in a local folder) they were made for"
    if base.model_type and _type(base.model_type) != family:
        raise ValueError(
            f"{sae}: made for {trained_on!r} (family {family}), but base {base.name} is of type {base.model_type!r}; "
            f"{mend}"
        )
    base_family, base_model = _parse(base.public_id or "")
    if base_family == family and "".join(model) not in accumulate(base_model):
        raise ValueError(f"{sae}: made for {trained_on!r}, but the base is {base.public_id!r}; {mend}")


def _parse(name: str) -> tuple[str | None, list[str]]:
    """(family, words from the family's on without variant endings); the organisation does not count.

    The family is the first run of words that, joined, is a model type; of several the longest (gemma-2-2b: gemma2).
    """
    words = re.findall(r"[a-z0-9]+", name.lower().rsplit("/", 1)[-1])
    while words and words[-1] in _VARIANTS:
        words.pop()
    known = _families()
    for start in range(len(words)):
        for end in range(len(words), start, -1):
            if (joined := "".join(words[start:end])) in known:
                return known[joined], words[start:]
    return None, []


@cache
def _families() -> dict[str, str]:
    """Joined words of a name -> family."""
    return {_type(name): _type(name) for name in CONFIG_MAPPING_NAMES} | _FAMILIES


def _type(model_type: str) -> str:
    """A model type without marks for text-only and mixture-of-experts versions: gemma3_text is gemma3."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(_moe|_text)+$", "", model_type))
