"""environment.json: where, when and with what a run was made."""

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.base_model import base_identity
from harness.experiment.identity import sae_hash, triples_hash
from harness.experiment.store import RunFolder
from harness.experiment.suite import Suite
from harness.preferences import Triple
from harness.provenance import git_state, machine, package_versions


def describe_environment(suite: Suite, triples: Sequence[Triple], *, suite_hash: str, folder: Path) -> dict[str, Any]:
    """environment.json without ``seconds``; paths are relative to ``folder``, the run folder."""
    file = suite.file

    def ref(value: Any, digest: str | None) -> dict[str, Any]:
        dump = value.model_dump()
        path = dump.get("path") and Path(os.path.relpath(dump["path"], folder)).as_posix()
        return {**dump, "path": path, "hash": digest}

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "suite_hash": suite_hash,
        "git": git_state(),
        **machine(),
        "threads": file.execution.threads,
        "packages": package_versions(),
        **_judges(suite, RunFolder(folder)),
        "notes": [note for benchmark in suite.benchmarks.values() for note in benchmark.notes],
        "base": ref(file.base, base_identity(file.base)),
        "saes": {name: ref(sae, sae_hash(sae)) for name, sae in file.saes.items()},
        "triples": {
            "path": Path(os.path.relpath(file.triples.path, folder)).as_posix(),
            "n": len(triples),
            "hash": triples_hash(triples),
        },
    }


def _judges(suite: Suite, run: RunFolder) -> dict[str, Any]:
    """``judge`` and ``second_judge`` (None where there is none), as they are once prepared in the run folder."""
    prepared = {key: judge.at(run.judging) for key, judge in suite.judges.items()}
    described: dict[str, Any] = {"judge": None, "second_judge": None}
    described |= {key: {"label": judge.label, "statement": judge.statement} for key, judge in prepared.items()}
    if described["second_judge"]:
        described["second_judge"]["benchmarks"] = list(suite.judged_twice)
    return described
