"""Sparse autoencoders on the residual stream, loaded through SAELens from a folder or by release name."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from dspa.saes.encoder import Encoder, check_supported
from harness.data.refs import BaseShape, SAERef
from harness.files import parse_json
from harness.model.artifact import hash_tensors
from harness.model.pretrained import check_finite

_HOOK_POINTS = (
    (re.compile(r"^blocks\.(\d+)\.hook_resid_post$"), 0),
    (re.compile(r"^blocks\.(\d+)\.hook_resid_pre$"), -1),  # what enters block l left block l-1
    (re.compile(r"^(?:model\.)?layers\.(\d+)$"), 0),
)
_WEIGHTS = "sae_weights.safetensors"
# What SAELens' loaders end in on truncated or foreign weights: safetensors, torch.load, missing names, wrong shapes.
_DAMAGED = (SafetensorError, UnpicklingError, BadZipFile, EOFError, KeyError, RuntimeError)
# adamkarvonen's Qwen3 repositories, which SAELens can read but has no release names for.
_KARVONEN = re.compile(r"^adamkarvonen/qwen3-[\w.]+-saes$")
_KARVONEN_NORM_MULTIPLE = 10.0  # they were trained without tokens longer than this multiple of the median norm


@dataclass(frozen=True, eq=False)
class ResidualSAE:
    """A frozen SAE on the output of decoder layer ``layer``; stateless, all in fp32 whatever the model's dtype.

    ``norm_multiple``: tokens whose residual is longer than this multiple of the median were left out when the SAE was
    trained, and are left alone (None: no such filter).
    """

    sae: Any
    layer: int
    norm_multiple: float | None = None

    def __repr__(self) -> str:
        return f"<ResidualSAE: {self.d_sae} latents of a stream of width {self.d_model}, at layer {self.layer}>"

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def d_model(self) -> int:
        return int(self.sae.cfg.d_in)

    @cached_property
    def identity(self) -> str:
        """Content hash: weights, configuration, layer and norm filter, wherever the SAE was loaded from."""
        options = {k: v for k, v in self.sae.cfg.to_dict().items() if k not in ("device", "dtype", "metadata")}
        options["norm_multiple"] = self.norm_multiple
        digest = hashlib.sha256()
        hash_tensors(digest, self.sae.state_dict())
        return f"{self.layer}-{json.dumps(options, sort_keys=True)}-{digest.hexdigest()}"

    @cached_property
    def encoder(self) -> Encoder:
        """Its arithmetic (see dspa.saes.encoder)."""
        return Encoder.of(self.sae)

    def encode(self, residual: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_sae"]:
        """Latent activations."""
        return self.encoder.encode(residual)

    def fits_norm(self, residual: Float[Tensor, "*any d_model"], limit: float | None) -> Bool[Tensor, "*any"]:
        """Whether each token's norm is at most ``limit`` (None: every token fits)."""
        norms = torch.linalg.vector_norm(residual.float(), dim=-1)
        return torch.ones_like(norms, dtype=torch.bool) if limit is None else norms <= limit


def load_sae(ref: SAERef, device: str = "cpu") -> ResidualSAE:
    """Load through SAELens, in fp32 and frozen; each SAE is held once per process.

    Raises ValueError when files are missing or damaged, weights are integers, NaN or infinite, the hook point is not
    the residual stream, or the arithmetic is none that we have.
    """
    return _load(ref, device)  # type: ignore[arg-type]  # frozen, so pydantic makes it hashable


def read_sae(ref: SAERef, device: str = "cpu") -> ResidualSAE:
    """`load_sae` without its memory of earlier calls: what the files hold now."""
    # To the CPU first: what goes wrong here is then the files' fault and not the device's.
    try:
        if ref.path is not None:
            _config_of(ref)
            _check_there(ref, _WEIGHTS)
            _check_dtypes(ref)
            sae = SAE.load_from_disk(ref.path, device="cpu", dtype="float32")
        else:
            known = not _KARVONEN.match(str(ref.release))
            converter = None if known else loaders.dictionary_learning_sae_huggingface_loader_1
            sae = SAE.from_pretrained(str(ref.release), str(ref.id), dtype="float32", converter=converter)
    except OSError as problem:
        raise ValueError(f"cannot read SAE {ref}: {problem}") from None
    except _DAMAGED as problem:
        raise ValueError(
            f"SAE {ref}: {_WEIGHTS if ref.path else 'its weights file'} is damaged or does not belong to its "
            f"configuration ({type(problem).__name__}: {problem}); get it again"
        ) from None
    check_finite(sae.state_dict(), f"SAE {ref}")
    config = sae.cfg.to_dict()
    layer = _layer_of(ref, config)
    return ResidualSAE(sae.eval().requires_grad_(False).to(device), layer, _norm_multiple(ref, config))


_load = cache(read_sae)


def _check_dtypes(ref: SAERef) -> None:
    """Integers are another's codes, and reading them as numbers gives other latents."""
    with safe_open(Path(str(ref.path)) / _WEIGHTS, framework="pt") as stored:
        types = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    wrong = {name: kind for name, kind in types.items() if not kind.startswith(("F", "BF"))}
    if wrong:
        raise ValueError(f"SAE {ref}: {_WEIGHTS} holds no floating-point numbers: {wrong}; get it again")


@cache
def _check_weights(ref: SAERef, size: int, changed: int) -> None:
    """`read_sae` once for each file, by its size and time, without keeping what it gives."""
    read_sae(ref)


def check_sae(ref: SAERef, base: BaseShape) -> tuple[int, int]:
    """(layer, d_sae) of an SAE that fits the base; raises ValueError saying what does not fit.

    A folder's weights are looked at too (see `load_sae`), and not kept, unless the base is ``on_paper``; a release name
    is resolved, and loaded, by SAELens.
    """
    layer, config = _config_of(ref)
    if ref.path is not None and not base.on_paper:
        _check_there(ref, _WEIGHTS)
    if config["d_in"] != base.d_model:
        raise ValueError(
            f"SAE {ref}: made for d_model {config['d_in']}, but base {base.name} has d_model {base.d_model}"
        )
    if not 0 <= layer < base.n_layers:
        raise ValueError(
            f"SAE {ref}: layer {layer} is outside base {base.name}, whose layers are 0..{base.n_layers - 1}"
        )
    check_same_model(f"SAE {ref}", (config.get("metadata") or {}).get("model_name"), base)
    _norm_multiple(ref, config)
    if ref.path is not None and not base.on_paper:
        stat = (Path(ref.path) / _WEIGHTS).stat()
        _check_weights(ref, stat.st_size, stat.st_mtime_ns)  # type: ignore[arg-type]  # frozen, so pydantic hashes it
    return layer, int(config["d_sae"])


def sae_sizes(ref: SAERef) -> tuple[int, int, int]:
    """(layer, d_model, d_sae), read as in `check_sae`."""
    layer, config = _config_of(ref)
    return layer, int(config["d_in"]), int(config["d_sae"])


def _layer_of(ref: SAERef, config: Mapping[str, Any]) -> int:
    """The layer whose output the SAE reads; ValueError where SAELens' configuration is none we can use."""
    check_supported(f"SAE {ref}", config)
    hook = (config.get("metadata") or {}).get("hook_name")
    for pattern, offset in _HOOK_POINTS:
        match = pattern.match(hook if isinstance(hook, str) else "")
        if match:
            return int(match.group(1)) + offset
    raise ValueError(
        f"SAE {ref}: hook point {hook!r} is not the residual stream; use one trained on blocks.<l>.hook_resid_post"
    )


def _config_of(ref: SAERef) -> tuple[int, dict[str, Any]]:
    """(layer, configuration) as SAELens reads it, older formats included, and checked."""
    if ref.path is None:
        sae = load_sae(ref)
        return sae.layer, sae.sae.cfg.to_dict()
    folder = Path(str(ref.path))
    _check_there(ref, "cfg.json")
    try:
        config = parse_json((folder / "cfg.json").read_bytes())
        sizes = {key: _whole(config[key]) for key in ("d_in", "d_sae")}
        if not isinstance(config.get("metadata", {}), dict):
            raise TypeError("metadata is no object")
        if not isinstance(config.get("apply_b_dec_to_input", True), bool):
            raise TypeError("apply_b_dec_to_input is neither true nor false")
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(
            f"{folder / 'cfg.json'} is not a SAELens configuration ({type(problem).__name__}: {problem}); give a "
            "folder written by SAELens' save_model"
        ) from None
    # First the architecture alone: SAELens ends in a KeyError for one it does not know.
    check_supported(f"SAE {ref}", {"architecture": config.get("architecture", "standard")})
    config = loaders.handle_config_defaulting(config) | sizes
    return _layer_of(ref, config), config


def _check_there(ref: SAERef, name: str) -> None:
    if not (Path(str(ref.path)) / name).is_file():
        raise ValueError(f"SAE folder {ref.path!r} has no {name}; give a folder written by SAELens' save_model")


def _whole(value: Any) -> int:
    """A size; TypeError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError(f"{value!r} is no size, which is a whole number from 1 on")
    return value


def norm_multiple(ref: SAERef) -> float | None:
    """The norm filter that the SAE behind ``ref`` was trained with, if any (see `ResidualSAE`).

    That of the reference where it gives one, else what the SAE's own metadata records, as `train-sae` writes it.
    """
    return _norm_multiple(ref, _config_of(ref)[1])


def _norm_multiple(ref: SAERef, config: Mapping[str, Any]) -> float | None:
    recorded = (config.get("metadata") or {}).get("norm_filter")
    if ref.norm_filter is not None:
        return ref.norm_filter
    if recorded is None:
        return _KARVONEN_NORM_MULTIPLE if _KARVONEN.match(ref.release or "") else None
    if isinstance(recorded, bool) or not isinstance(recorded, int | float) or not 1 < recorded < float("inf"):
        raise ValueError(
            f"SAE {ref}: its metadata has norm_filter {recorded!r}; it is a multiple of the median norm, above 1: "
            "mend its cfg.json, or give `norm_filter` with the SAE"
        )
    return float(recorded)


def _type(model_type: str) -> str:
    """A model type without marks for text-only and mixture-of-experts versions: gemma3_text is gemma3."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(_moe|_text)+$", "", model_type))


# Endings that name the same sizes and, nearly, the same residual stream ("gpt2-small" is how GPT-2 is called by SAEs).
_VARIANTS = {"it", "instruct", "chat", "base", "pt", "small"}
# Joined words of a name -> family; Pythia's models are not named after transformers' model type.
_FAMILIES = {_type(name): _type(name) for name in CONFIG_MAPPING_NAMES} | {"pythia": "gptneox"}


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
    for start in range(len(words)):
        for end in range(len(words), start, -1):
            if (joined := "".join(words[start:end])) in _FAMILIES:
                return _FAMILIES[joined], words[start:]
    return None, []
