"""Where a result comes from: the code's commit, the installed packages, the machine."""

import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

DISTRIBUTION = "dspa-bench"


def machine() -> dict[str, Any]:
    """Python, platform, processor, usable cores, memory and accelerator of this machine."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        # what this process may use, which in a container is less than the machine has
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def package_versions() -> dict[str, str]:
    """Installed versions of what the project depends on (and its own), by distribution name."""
    requirements = [r for r in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in r]
    names = [DISTRIBUTION, *(re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in requirements)]
    return {name: metadata.version(name) for name in sorted(names)}


@cache
def git_state() -> dict[str, Any] | None:
    """Commit this code runs from and whether the checkout has uncommitted changes, as it was when this process first
    asked; None outside of one."""

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
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    name = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
