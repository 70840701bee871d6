"""What a run's results depend on, by content: a folder is never filled from two different experiments."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.refs import SAERef
from harness.data.triples import Triple, triples_hash
from harness.experiment.suite import Suite
from harness.model.base import base_identity, folder_hash
from harness.run_folder.plan import PlannedCell, point_name

Identity = dict[str, Any]


def identify(suite: Suite, cells: Sequence[PlannedCell], triples: Sequence[Triple]) -> Identity:
    """{unit: what it is} for the suite, each benchmark, each variant and sweep point, and each cell.

    Files stand for their content: a triples or question file that was edited since is a difference, one that
    was moved is not. How the work is done (``execution``) and shown (``report``, labels) is left out.
    """
    file = suite.file
    judges = {key: {"kind": judge.name, **decisive_settings(judge)} for key, judge in suite.judges.items()}
    units: Identity = {
        "suite": {
            "name": file.name,
            "seed": file.seed,
            "base": {**file.base.model_dump(include={"dtype", "chat"}), "content": base_identity(file.base)},
            "saes": {name: sae_hash(ref) or str(ref) for name, ref in file.saes.items()},
            "triples": triples_hash(triples),
            "judge": judges.get("judge"),
        }
    }
    if "second_judge" in judges:
        units["second_judge"] = judges["second_judge"]
    for name, benchmark in suite.benchmarks.items():
        settings = decisive_settings(benchmark)
        # Answers do not depend on the batch size, and running out of memory is a reason to change it.
        settings.pop("batch_size", None)
        units[f"benchmarks.{name}"] = settings
    for section, variant in zip(file.variants, suite.variants, strict=True):
        for values, method in [(None, variant.method), *((point.values, point.method) for point in variant.points)]:
            params = suite.params(section, method, {"contents": True})
            units[f"variants.{point_name(section.name, values)}"] = {"method": section.method, "params": params}
    for cell in cells:
        if cell.sweep is None:  # a larger budget moves a sweep to new cells; the old ones are still what they say
            units[f"cells.{cell.name}"] = {}
    return json.loads(json.dumps(units))


def decisive_settings(thing: Any) -> dict[str, Any]:
    """All settings of a benchmark or judge, defaults included, with contents in place of paths.

    Those that a judge calls operational change no verdict and are left out.
    """
    return thing.model_dump(mode="json", exclude=set(getattr(thing, "operational", ())), context={"contents": True})


def differences(there: Identity, here: Identity) -> list[str]:
    """How ``here`` contradicts an existing run's identity; more benchmarks, variants, cells, a second judge do not."""
    found = []
    for unit, content in there.items():
        if unit in here:
            old, new = _flat(content), _flat(here[unit])
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            found += [f"{unit}.{key}: {_short(old.get(key))} there, {_short(new.get(key))} here" for key in keys]
        else:
            found.append(f"{unit}: there, not in this suite")
    return found


def identity_hash(identity: Identity) -> str:
    """sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def sae_hash(ref: SAERef) -> str | None:
    """Content hash of a local SAE folder; None for a public name, which SAELens does not pin to a content."""
    return folder_hash(ref.path) if ref.path is not None else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}...{text[-4:]}"
