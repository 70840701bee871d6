"""The artifact folder: aligned.json plus safetensors (adapter/, weights/, intervention.safetensors). Never pickle.

`harness.model.aligned.AlignedModel.save` and `load` put together what is written and read here.
"""

import copy
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from harness.files import atomic_folder, parse_json
from harness.model.base import BaseModel
from harness.model.intervention import INTERVENTIONS, Intervention
from harness.model.pretrained import check_finite, check_finite_file, read_model
from harness.plugins import load_plugins
from harness.quiet import hiding_deprecations
from harness.references import references, relative_to, starting_at, with_paths

SCHEMA_VERSION = 2
_OWN = {"adapter": "an adapter", "weights": "weights of its own"}


def write_artifact(
    path: str | Path,
    description: Mapping[str, Any],
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tensors: Mapping[str, Tensor] | None,
) -> None:
    """Write the folder, complete or not at all; ValueError when ``path`` exists already.

    ``description["delta"]`` says what of ``model`` is kept; ``tensors`` are the intervention's. Paths of what lies
    elsewhere are written relative to ``path``.
    """
    with atomic_folder(path) as folder:
        if tensors is not None:
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(kept, folder / "intervention.safetensors")
        if description["delta"] != "none":
            model.save_pretrained(folder / description["delta"])
        if description["delta"] == "adapter":
            _settle_adapter(folder / "adapter", description["base"], Path(path))
        if description["delta"] == "weights":
            tokenizer.save_pretrained(folder / "weights")  # so that the folder is a base model of its own
        readable = folder / "aligned.json"
        written = with_paths({"schema_version": SCHEMA_VERSION, **description}, relative_to(Path(path)))
        readable.write_text(json.dumps(written, indent=2) + "\n", "utf-8")
        for file in folder.rglob("*.safetensors"):
            shutil.copymode(readable, file)  # safetensors lets nobody but the owner read what it writes


def _settle_adapter(adapter: Path, base: Mapping[str, Any], artifact: Path) -> None:
    """PEFT notes where this process had the base; other tools read that, so it is to mean something elsewhere.

    Sets of modules it writes in the order of their hashes, another one in each process. Its README.md, a form that
    nobody filled in, says where the base was once more, and goes.
    """
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base["id"] or relative_to(artifact / "adapter")(base["path"])
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    (adapter / "README.md").unlink(missing_ok=True)


_KEYS: dict[str, tuple[Any, str]] = {
    "method": (str, "a text"),
    "base": (dict, "an object"),
    "params": (dict, "an object"),
    "fingerprint": (str, "a text"),
    "delta": (str, "a text"),
    "intervention": (dict | None, "an object or null"),
    "system_prompt": (str | None, "a text or null"),
    "budget": (dict | None, "an object or null"),
    "bill": (dict | None, "an object or null"),
}
"""Key of aligned.json -> what it must be, for Python and in words."""
_PARTS: dict[str, dict[str, tuple[Any, str]]] = {
    "base": {"path": (str | None, "a text or null"), "id": (str | None, "a text or null"), "hash": (str, "a text")},
    "intervention": {"kind": (str, "a text"), "params": (dict, "an object")},
}
"""The same of what is in it."""


def read_description(path: str | Path) -> dict[str, Any]:
    """aligned.json of an artifact folder, checked for its schema version; paths in it are absolute."""
    file = Path(path) / "aligned.json"
    if not file.is_file():
        raise ValueError(f"{path} is not an artifact folder: it has no aligned.json")
    try:
        description = parse_json(file.read_bytes())
    except ValueError as problem:
        raise ValueError(f"{file} is damaged: {problem}; fit the artifact again") from None
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema version {version!r}; this version reads {SCHEMA_VERSION}, so fit the artifact again"
        )
    _check_keys(file, "", description, _KEYS)
    for place, keys in _PARTS.items():
        if description[place] is not None:
            _check_keys(file, f"{place}.", description[place], keys)
    for name, reference in references(description):
        if not isinstance(found := reference["path"], str):
            raise ValueError(
                f"{file} is damaged: {name}.path must be a text or null, got {repr(found)[:60]}; fit the artifact again"
            )
    return with_paths(description, starting_at(Path(path)))


def _check_keys(file: Path, place: str, found: Mapping[str, Any], keys: Mapping[str, tuple[Any, str]]) -> None:
    for key, (kinds, what) in keys.items():
        if key not in found or not isinstance(found[key], kinds):
            there = repr(found[key])[:60] if key in found else "nothing"
            raise ValueError(f"{file} is damaged: {place + key!r} must be {what}, got {there}; fit the artifact again")


def moved_saes(path: str | Path, saved: Mapping[str, Any] | None, saes: Mapping[str, str | Path]) -> dict[str, Any]:
    """The intervention's entry of aligned.json with its SAEs where ``saes`` (name in its settings -> folder) has them.

    Raises ValueError for a name that it does not have, and for an SAE that is not where it is said to be.
    """
    found = dict(references((saved or {}).get("params")))
    for name, folder in saes.items():
        if name not in found:
            text = f"its local SAEs are: {', '.join(found)}" if found else "it needs no SAE folder"
            raise ValueError(f"{path}: no SAE is called {name!r}; {text}")
        found[name]["path"] = str(Path(folder).resolve())
    for name, ref in found.items():
        if not Path(ref["path"]).is_dir():
            raise ValueError(
                f"{path}: SAE {name!r} is not at {ref['path']!r}; say where it is: --sae {name}=FOLDER, in Python "
                f"saes={{{name!r}: FOLDER}}"
            )
    return dict(saved or {})


def read_network(path: str | Path, delta: str, base: BaseModel) -> PreTrainedModel:
    """The network: the base's own, with the artifact's adapter around a copy of it, or of the artifact's weights."""
    if delta not in ("none", "adapter", "weights"):
        raise ValueError(f"{path}: {delta!r} is no kind of artifact (none, adapter, weights); fit it again")
    if delta != "none" and base.ref.device_map is not None:
        raise ValueError(f"{path} has {_OWN[delta]}: it needs a base on one device, without device_map")
    if delta == "adapter":
        from peft import PeftModel

        # PEFT injects its layers into the module it is given, and the base is shared between artifacts.
        folder = Path(path) / "adapter"
        check_finite_file(folder / "adapter_model.safetensors")
        try:
            with hiding_deprecations():
                warnings.filterwarnings("error", "Found missing adapter keys")  # PEFT makes them up
                adapted = PeftModel.from_pretrained(copy.deepcopy(base.model), folder)
        except Exception as problem:  # PEFT checks little, so that its library, JSON and torch raise what they find
            reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            raise ValueError(f"the adapter in {folder} is damaged ({reason}); fit the artifact again") from problem
        name_base(adapted, base)
        return adapted.eval()  # type: ignore[return-value]  # it runs like the model inside
    if delta == "weights":
        model = read_model(AutoModelForCausalLM, str(Path(path) / "weights"), dtype=base.model.dtype)
        model.generation_config = base.model.generation_config
        model.to(base.model.device)  # type: ignore[arg-type]
        return model.eval()
    return base.model


def name_base(adapted: Any, base: BaseModel) -> None:
    """Tell a PEFT model where its base is now: it compares vocabularies when asked for its adapter's tensors."""
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = base.ref.path or base.ref.id


def read_intervention(path: str | Path, saved: Mapping[str, Any] | None, device: str) -> Intervention | None:
    """The intervention that aligned.json describes by ``saved``, with its tensors; ValueError when they are damaged."""
    if saved is None:
        return None
    load_plugins()
    file = Path(path) / "intervention.safetensors"
    try:
        tensors = load_file(file, device=device)
    except (FileNotFoundError, SafetensorError) as problem:
        raise ValueError(f"{file} is missing or damaged ({problem}); fit the artifact again") from None
    check_finite(tensors, str(file))
    try:
        return INTERVENTIONS[saved["kind"]].restore(tensors, saved["params"], device)
    except Exception as problem:  # each kind reads its own settings and tensors
        reason = str(problem) if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"
        raise ValueError(f"the intervention in {path} cannot be read ({reason}); fit the artifact again") from problem


def hash_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add the names, dtypes, shapes and bytes of tensors to a hashlib digest, whatever their order."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
