"""The bodies of `perf steering` and `perf fit`: say on what is measured, measure, keep the report."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from dspa.perf.fit import FitOptions, measure_fit
from dspa.perf.report import Report, Section
from dspa.perf.steering import SteeringOptions, measure_steering
from harness.experiment.environment import code_commit, machine

_FORMATS = (".json", ".md")


def steering_command(threads: int | None, out: Path | None, **settings: Any) -> None:
    """Measure decoding."""
    measure_and_keep("DSPA while decoding", SteeringOptions(**settings), measure_steering, threads, out)


def fit_command(threads: int | None, out: Path | None, **settings: Any) -> None:
    """Measure fitting."""
    measure_and_keep("Fitting DSPA", FitOptions(**settings), measure_fit, threads, out)


def measure_and_keep(
    title: str, options: Any, measure: Callable[..., list[Section]], threads: int | None, out: Path | None
) -> None:
    """Print on what is measured, then ``measure(options, tell=print)``; ``options`` is a dataclass."""
    if out is not None:
        if out.suffix not in _FORMATS:
            raise ValueError(f"--out {str(out)!r} must end in {' or '.join(_FORMATS)}, which is the format to write")
        out.parent.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    facts = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "code": code_commit() or "unknown",
        **machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "options": ", ".join(f"{name}={value}" for name, value in asdict(options).items()),
    }
    print(Report(title, facts, ()).markdown())
    sections = measure(options, tell=lambda text: print(text, flush=True))
    if out is not None:
        report = Report(title, facts, tuple(sections))
        out.write_text(report.json() if out.suffix == ".json" else report.markdown(), encoding="utf-8")
        print(f"kept as {out}")
