"""environment.json: where, when and with what a run was made."""

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.base_model import base_identity
from harness.experiment.identity import sae_hash
from harness.experiment.suite import Suite
from harness.preferences import Triple, triples_hash
from harness.provenance import git_state, machine, package_versions
from harness.run_folder.environment import Environment
from harness.run_folder.layout import RunFolder


def describe_environment(suite: Suite, triples: Sequence[Triple], *, suite_hash: str, folder: Path) -> Environment:
    """environment.json of the run in ``folder``, as it is now; no ``seconds`` have passed yet."""
    file, here = suite.file, {"folder": folder}
    return Environment.model_validate(
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "suite_hash": suite_hash,
            "git": git_state(),
            **machine(),
            "threads": file.execution.threads,
            "packages": package_versions(),
            **_judges(suite, RunFolder(folder)),
            "notes": [note for benchmark in suite.benchmarks.values() for note in benchmark.notes],
            "base": {**file.base.model_dump(mode="json", context=here), "hash": base_identity(file.base)},
            "saes": {
                name: {**ref.model_dump(mode="json", context=here), "hash": sae_hash(ref)}
                for name, ref in file.saes.items()
            },
            "triples": {
                **file.triples.model_dump(mode="json", context=here),
                "n": len(triples),
                "hash": triples_hash(triples),
            },
        }
    )


def _judges(suite: Suite, run: RunFolder) -> dict[str, Any]:
    """``judge`` and ``second_judge`` (None where there is none), as they are once prepared in the run folder."""
    prepared = {key: judge.at(run.judging) for key, judge in suite.judges.items()}
    described: dict[str, Any] = {"judge": None, "second_judge": None}
    described |= {key: {"label": judge.label, "statement": judge.statement} for key, judge in prepared.items()}
    if described["second_judge"]:
        described["second_judge"]["benchmarks"] = suite.judged_twice
    return described
