"""transformers' ``from_pretrained``, refusing with ValueError what it accepts although it is not all there.

It fills weights that a checkpoint lacks or names otherwise with random numbers, and makes a tokenizer without a word
where there are no files for one. Whoever gets such a model gets numbers that mean nothing.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harness.files import load_json
from harness.quiet import silenced

GIVE_INSTEAD = (
    "give the model that they were made from, a GGUF file of it (which is de-quantised), or weights saved after "
    "model.dequantize()"
)
"""In the place of quantised weights."""
T = TypeVar("T")
_SHOWN = 3
_MOST_LAYERS = 10_000


def read_model(kind: Any, source: str, *, new_head: bool = False, **settings: Any) -> PreTrainedModel:
    """The model of class ``kind`` (AutoModelForCausalLM, ...) that ``source`` (a folder or public name) holds.

    Raises ValueError naming ``source`` for weights that cannot be read, are missing, have another shape than the
    configuration says, belong to a layer that it does not have, or hold a NaN or an infinite number. With ``new_head``
    what is not of the decoder itself may be missing: it is to be trained. Tied weights need be there once. And what
    `read_config` refuses.
    """

    if not {"gguf_file", "config"} & settings.keys():  # that of a GGUF file is in it
        read_config(source, revision=settings.get("revision"))

    def load() -> Any:
        with silenced():  # its report of missing weights is our message
            return kind.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **settings)

    model, found = _reading("weights", source, load)
    text = model.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None) and text._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # SDPA has no soft cap (Gemma 2), and transformers to 5.19 left it out
    _check_names(model, found, source, new_head=new_head)
    check_finite(model.state_dict(), source)
    return model


def check_model(kind: Any, source: str, *, new_head: bool = False) -> None:
    """`read_model` of a local folder without keeping it: names and shapes from the headers, then every number, a tensor
    at a time. Weights that are no safetensors are looked at when they are loaded."""
    read_model(kind, source, new_head=new_head, device_map="meta")
    for file in sorted(Path(source).glob("*.safetensors")):
        check_finite_file(file)


def check_finite_file(file: Path) -> None:
    """Raise ValueError where a safetensors file cannot be read or a number in it is NaN or infinite."""

    def tensors() -> None:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                check_finite({name: stored.get_tensor(name)}, str(file))

    _reading("weights", str(file), tensors)


def read_tokenizer(source: str, **settings: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or public name; ValueError for one that cannot be read or knows special tokens only."""
    tokenizer = _reading(
        "tokenizer", source, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False, **settings)
    )
    if not tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        raise ValueError(
            f"the tokenizer of {source!r} knows no words, only {len(tokenizer)} special tokens: its files "
            "(tokenizer.json, or those that are its kind's) are missing or empty; put them there"
        )
    return tokenizer


def read_config(source: str, **settings: Any) -> Any:
    """The configuration of a folder or public name; ValueError for one that cannot be read, or of quantised weights.

    Those of local base models are de-quantised before (`harness.model.dequantised`). The products of others run in
    kernels of their own, whose FLOPs nobody counts: a bill would be too small.
    """
    if (file := Path(source) / "config.json").is_file():
        layers = found.get("num_hidden_layers") if isinstance(found := load_json(file, "model"), dict) else None
        if isinstance(layers, int) and layers > _MOST_LAYERS:  # transformers writes a list of them
            raise ValueError(f"{file}: num_hidden_layers {layers} is no number of layers; at most {_MOST_LAYERS:,}")
    config = _reading(
        "configuration", source, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    )
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        told = quantised if isinstance(quantised, Mapping) else vars(quantised)
        raise ValueError(
            f"the weights of {source!r} are quantised ({told.get('quant_method', 'unnamed')}), and the FLOPs of "
            "such layers cannot be metered; a base model's that lie in a local folder are de-quantised, so for a base "
            f"fetch them and give the folder as its path; else {GIVE_INSTEAD}"
        )
    return config


def check_finite(tensors: Mapping[str, Tensor], place: str) -> None:
    """Raise ValueError naming the first tensors with a NaN or an infinite number, and ``place``."""
    if (wrong := not_finite_in(tensors)) is not None:
        raise ValueError(f"{place}: NaN or infinite numbers in {wrong}; get these weights again")


def not_finite_in(tensors: Mapping[str, Tensor]) -> str | None:
    """The names of the first tensors with a NaN or an infinite number; None where there are none."""
    return _named([name for name, tensor in tensors.items() if not _finite(tensor)]) or None


def _finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    # One pass and no copy; only a sum that overflows, which numbers of that size may do, is looked at one by one.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def _check_names(model: Any, found: Mapping[str, Any], source: str, *, new_head: bool) -> None:
    missing = sorted(found["missing_keys"])
    if new_head:
        missing = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    known = {_pattern(name) for name in model.state_dict()}
    surplus = sorted(name for name in found["unexpected_keys"] if _pattern(name) in known)
    for names, what in (
        (missing, "lack what the configuration asks for"),
        ([str(one[0]) for one in found["mismatched_keys"]], "have other shapes than the configuration says"),
        (surplus, "belong to layers that the configuration does not have"),
    ):
        if names:
            others = f" (there instead: {_named(sorted(found['unexpected_keys']))})" if found["unexpected_keys"] else ""
            raise ValueError(
                f"the weights of {source!r} {what}: {_named(names)}{others if names is missing else ''}; "
                "get weights and config.json again, both of the same model"
            )


def _pattern(name: str) -> str:
    """A weight's name whatever its layer."""
    return re.sub(r"\.\d+\.", ".#.", name)


def _named(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _reading(what: str, source: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ValueError as problem:
        if source in str(problem):
            raise
        reason = problem
    except Exception as problem:  # each format and each class of transformers raises its own
        reason = problem
    kind = "" if isinstance(reason, ValueError | OSError) else f"{type(reason).__name__}: "
    raise ValueError(
        f"cannot read the {what} of {source!r}: {kind}" + re.sub(r"\s+", " ", str(reason))[:500]
    ) from reason
