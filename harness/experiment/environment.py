"""environment.json: where, when and with what a run was made."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from harness.base_model import base_identity
from harness.experiment.identity import sae_hash
from harness.experiment.suite import Suite
from harness.preferences import Triple, triples_hash
from harness.run_folder.environment import Environment
from harness.run_folder.layout import RunFolder

DISTRIBUTION = "dspa-bench"


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


def machine() -> dict[str, Any]:
    """Python, platform, processor, usable cores, memory and accelerator of this machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def usable_cores() -> int:
    """Cores this process may run on, which in a container is less than the machine has."""
    return (
        len(psutil.Process().cpu_affinity() or []) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    )


def package_versions() -> dict[str, str]:
    """Installed versions of what the project depends on (and its own), by distribution name."""
    requirements = [r for r in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in r]
    names = [DISTRIBUTION, *(re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in requirements)]
    return {name: metadata.version(name) for name in sorted(names)}


@cache
def git_state() -> dict[str, Any] | None:
    """Commit this code runs from and whether the checkout has uncommitted changes; None outside of one.

    As it was when this process first asked: the checkout may change while it works.
    """

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit and {"commit": commit, "dirty": bool(git("status", "--porcelain"))}  # type: ignore[return-value]


def code_commit() -> str | None:
    """`git_state` as one word, with "-dirty" for uncommitted changes."""
    state = git_state()
    return None if state is None else f"{state['commit']}{'-dirty' if state['dirty'] else ''}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
