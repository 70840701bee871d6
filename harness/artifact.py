"""The artifact folder: aligned.json plus safetensors (adapter/, weights/, intervention.safetensors). Never pickle."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from harness.base_model import BaseModel
from harness.intervention import INTERVENTIONS
from harness.plugins import load_plugins
from harness.quiet import hiding_deprecations
from harness.refs import ModelRef

if TYPE_CHECKING:
    from harness.model import AlignedModel

SCHEMA_VERSION = 2


def save_artifact(aligned: "AlignedModel", path: str | Path) -> None:
    """Write into a temporary neighbour and rename, so that the folder appears complete or not at all.

    Raises ValueError when ``path`` exists already.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already; artifacts are never overwritten, choose another folder")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    intervention = aligned.intervention
    if intervention is not None:
        tensors = {name: t.detach().cpu().contiguous() for name, t in intervention.tensors().items()}
        save_file(tensors, partial / "intervention.safetensors")
    if aligned.delta == "adapter":
        aligned.model.save_pretrained(partial / "adapter")
    elif aligned.delta == "weights":
        aligned.model.save_pretrained(partial / "weights")
        aligned.tokenizer.save_pretrained(partial / "weights")  # so that the folder is a base model of its own
    description = {
        "schema_version": SCHEMA_VERSION,
        "method": aligned.method,
        "base": {**_pinned(aligned.base), "hash": aligned.base.identity},
        "budget": aligned.budget,
        "params": dict(aligned.params),
        "fingerprint": aligned.fingerprint,
        "delta": aligned.delta,
        "intervention": None if intervention is None else {"kind": intervention.kind, "params": intervention.params()},
        "system_prompt": aligned.system_prompt,
        "bill": aligned.bill,
    }
    readable = partial / "aligned.json"
    readable.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for file in partial.rglob("*.safetensors"):
        shutil.copymode(readable, file)  # safetensors lets nobody but the owner read what it writes
    partial.rename(path)


def load_artifact(
    path: str | Path, *, base: "BaseModel | ModelRef | None" = None, device: str = "cpu"
) -> "AlignedModel":
    """Load an artifact; ``base`` overrides where the base is found, but its content must be the same.

    Raises ValueError for a folder without aligned.json, an unknown schema, another base, or changed tensors.
    """
    from harness.model import AlignedModel

    description = read_description(path)
    saved = dict(description["base"])
    expected = saved.pop("hash")
    if isinstance(base, BaseModel):
        device = str(base.model.device)
    else:
        base = BaseModel.load(base or ModelRef(**saved), device=device)
    if base.identity != expected:
        raise ValueError(
            f"{path}: made on base {saved['path'] or saved['id']} with hash {expected[:12]}, "
            f"but the base given has {base.identity[:12]}; give the base it was made on"
        )
    aligned = AlignedModel(
        base=base,
        model=_model(Path(path), description["delta"], base),
        method=description["method"],
        params=description["params"],
        delta=description["delta"],
        intervention=_intervention(Path(path), description["intervention"], device),
        system_prompt=description["system_prompt"],
        budget=description["budget"],
        bill=description["bill"],
    )
    if aligned.fingerprint != description["fingerprint"]:
        raise ValueError(f"{path}: the tensors do not match the fingerprint in aligned.json; the artifact was changed")
    return aligned


def read_description(path: str | Path) -> dict[str, Any]:
    """aligned.json of an artifact folder, checked for its schema version."""
    file = Path(path) / "aligned.json"
    if not file.is_file():
        raise ValueError(f"{path} is not an artifact folder: it has no aligned.json")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{file} is damaged: {problem}; fit the artifact again") from None
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema version {version!r}; this version reads {SCHEMA_VERSION}, so fit the artifact again"
        )
    return description


def _pinned(base: BaseModel) -> dict[str, Any]:
    """The base's reference as it will still mean the same tomorrow: absolute path, or the commit and not a branch."""
    reference = base.ref.located().model_dump()
    return reference if base.ref.id is None else reference | {"revision": base.identity}


def _model(path: Path, delta: str, base: BaseModel) -> Any:
    if delta == "adapter":
        import copy

        from peft import PeftModel

        # PEFT injects its layers into the module it is given, and the base is shared between artifacts.
        with hiding_deprecations():
            return PeftModel.from_pretrained(copy.deepcopy(base.model), path / "adapter").eval()
    if delta == "weights":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path / "weights", dtype=base.model.dtype)
        model.generation_config = base.model.generation_config
        model.to(base.model.device)  # type: ignore[arg-type]
        return model.eval()
    return base.model


def _intervention(path: Path, saved: dict[str, Any] | None, device: str) -> Any:
    if saved is None:
        return None
    load_plugins()
    file = path / "intervention.safetensors"
    try:
        tensors = load_file(file, device=device)
    except (FileNotFoundError, SafetensorError) as problem:
        raise ValueError(f"{file} is missing or damaged ({problem}); fit the artifact again") from None
    return INTERVENTIONS[saved["kind"]].restore(tensors, saved["params"], device)
