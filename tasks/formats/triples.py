"""Triples from samples: which answers are good enough to be chosen or rejected, and what came of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from statistics import mean
from typing import Any

from tasks.formats.content import content_of
from tasks.formats.forms import CHECKS, form_found, is_ended, lines, sentences, sides, words
from tasks.formats.prompts import FAMILIES, FORMS, Part, Prompt, of_part
from tasks.formats.samples import ASKED, EXAMPLES, Samples

HAS_FORM = 0.99  # least score of a chosen answer in the form that is preferred
HAS_WRONG = 0.6  # least score of a rejected answer in the form it was asked for: two steps of three will do
HAS_NOT = 0.25  # most score of a rejected answer in the form that is preferred
GOOD_CONTENT = 0.75  # least content of both (see tasks.formats.content)
MOST_ITEMS = 4
COPIED = 4
LONG_ENOUGH = 20
"""Words from which on a text that is no list gets no further sentence, so that all forms are about equally long."""


def triples_of(prompt: Prompt, samples: Samples, before: tuple[str, str] | None) -> list[dict[str, Any]]:
    """Rows of a triples file from the samples of ``prompt``: as many as there are pairs of answers that will do.

    No answer is in two of them, and the pairs are those whose lengths in words differ least in all. ``before`` is the
    turn before, as (prompt, answer).
    """
    chosen, rejected = chosen_of(prompt, samples), rejected_of(prompt, samples)
    number = min(len(chosen), len(rejected))
    ways = [
        list(zip(some, others, strict=True))
        for some in permutations(chosen, number)
        for others in combinations(rejected, number)
    ]
    pairs = min(ways, key=lambda way: sum(abs(len(words(a)) - len(words(b))) for a, b in way))
    pairs.sort(key=lambda pair: chosen.index(pair[0]))
    turn = {"role": "user", "content": prompt.text}
    asked: Any = prompt.text
    if before is not None:
        asked = [{"role": "user", "content": before[0]}, {"role": "assistant", "content": before[1]}, turn]
    return [{"prompt": asked, "chosen": a, "rejected": b, "source": prompt.id} for a, b in pairs]


def chosen_of(prompt: Prompt, samples: Samples) -> list[str]:
    """The answers that may be chosen: shortened to whole parts, they have the preferred form and good content."""
    found = dict.fromkeys(shortened(*sample, prompt.form) for sample in samples.right)
    return [text for text in found if CHECKS[prompt.form](text) >= HAS_FORM and _will_do(prompt, text, prompt.form)]


def rejected_of(prompt: Prompt, samples: Samples) -> list[str]:
    """Those that may be rejected: they have the wrong form and not the preferred one, and good content."""
    found = dict.fromkeys(shortened(*sample, prompt.wrong) for sample in samples.wrong)
    return [
        text
        for text in found
        if CHECKS[prompt.wrong](text) >= HAS_WRONG
        and CHECKS[prompt.form](text) <= HAS_NOT
        and _will_do(prompt, text, prompt.wrong)
    ]


def copies(text: str, form: str, prompt: str) -> bool:
    """Whether an answer has from the examples of its form what ``prompt`` does not ask for: `COPIED` words in a row, or
    what an example was about."""
    said = words(text)
    about = {f"{name}{plural}" for name in ASKED for plural in ("", "s")}
    if about & (set(said) - set(words(prompt))):
        return True
    shown = {run for example in EXAMPLES[form].values() for run in _runs(words(example))}
    return any(run in shown for run in _runs(said))


def shortened(text: str, ended: bool, form: str) -> str:
    """The beginning of a sample that was asked for in ``form``, in whole parts; "" where it has none.

    A list keeps its first items, `MOST_ITEMS` at most, without a last one that was cut off. Other texts keep whole
    sentences until they have `LONG_ENOUGH` words: both sides at least, of one sentence the first alone. A quotation
    that is still open there is closed: its opening mark was not the model's own either.
    """
    if form in ("steps", "bullets"):
        found = lines(text)
        return "\n".join((found if ended else found[:-1])[:MOST_ITEMS])
    if form == "quoted":
        inside = text[1:].split('"')[0].strip()
        whole = _whole(inside, ended or '"' in text[1:], form)
        return f'"{whole}"' if whole else ""
    return _whole(text, ended, form)


def _whole(text: str, ended: bool, form: str) -> str:
    found = sentences(text)
    if found and not ended and not is_ended(found[-1]):
        found = found[:-1]
    kept: list[str] = []
    for one in found:
        kept.append(one)
        said = " ".join(kept)
        if form == "sentence" or (len(words(said)) >= LONG_ENOUGH and (form != "sides" or sides(said) > 0)):
            break
    return " ".join(kept)


def figures(
    prompts: Sequence[Prompt], samples: Mapping[str, Samples], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Of each family: prompts, samples taken in the right and wrong form and how many will do, triples, their wrong
    forms, and the mean lengths in words; ``longer_is_chosen`` is the share of triples that a rule by length would get
    right (ties half). Under ``all`` the same of all families together."""
    by_id = {prompt.id: prompt for prompt in prompts}
    found: dict[str, Any] = {}
    for family in (*FAMILIES, "all"):
        asked = [prompt for prompt in prompts if family in (prompt.family, "all")]
        kept = [row for row in rows if family in (by_id[row["source"]].family, "all")]
        lengths = [(len(words(row["chosen"])), len(words(row["rejected"]))) for row in kept]
        wrong = Counter(by_id[row["source"]].wrong for row in kept)
        found[family] = {
            "prompts": len(asked),
            "right_samples": sum(len(samples[p.id].right) for p in asked),
            "right_good": sum(len(chosen_of(p, samples[p.id])) for p in asked),
            "wrong_samples": sum(len(samples[p.id].wrong) for p in asked),
            "wrong_good": sum(len(rejected_of(p, samples[p.id])) for p in asked),
            "prompts_with_triples": len({row["source"] for row in kept}),
            "triples": len(kept),
            "rejected_forms": {form: wrong[form] for form in FORMS if wrong[form]},
            "chosen_words": _mean(a for a, _ in lengths),
            "rejected_words": _mean(b for _, b in lengths),
            "longer_is_chosen": _mean(float(a > b) + 0.5 * (a == b) for a, b in lengths),
        }
    return found


def forms_of(prompts: Sequence[Prompt], own: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Family -> the forms found in the model's own answers, most frequent first."""
    found = {family: Counter[str]() for family in FAMILIES}
    for prompt in prompts:
        if prompt.text in own:
            found[prompt.family][form_found(own[prompt.text])] += 1
    return {family: dict(counts.most_common()) for family, counts in found.items()}


def rows_of(
    prompts: Sequence[Prompt], part: Part, samples: Mapping[str, Samples], own: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of a triples file: those of each prompt of the set, in the prompts' order."""
    by_id = {prompt.id: prompt for prompt in prompts}
    rows = []
    for prompt in of_part(prompts, part):
        before = by_id[prompt.after].text if prompt.after else None
        rows += triples_of(prompt, samples[prompt.id], None if before is None else (before, own[before]))
    return rows


def _will_do(prompt: Prompt, text: str, form: str) -> bool:
    good = content_of(prompt.text, text, prompt.family).factor >= GOOD_CONTENT
    return good and not copies(text, form, prompt.text)


def _runs(said: Sequence[str]) -> set[tuple[str, ...]]:
    """Every `COPIED` words in a row, but for those that only name the form."""
    found = {tuple(said[start : start + COPIED]) for start in range(len(said) - COPIED + 1)}
    return {run for run in found if "hand" not in run}


def _mean(values: Any) -> float | None:
    found = list(values)
    return round(mean(found), 2) if found else None
