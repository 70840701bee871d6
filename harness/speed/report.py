"""What a measurement prints and keeps: ratios and figures beside their goals, never asserted."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from harness.provenance import code_commit, machine
from harness.speed.compare import Comparison, Goal, Ratio


@dataclass(frozen=True)
class Line:
    """How many times as fast ``what`` is as ``against``."""

    what: str
    against: str
    ratio: Ratio
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        return "" if self.goal is None else f"{self.goal.verdict(self.ratio)} (>= {self.goal.at_least:.3g})"


@dataclass(frozen=True)
class Figure:
    """A number of this machine, or a size."""

    what: str
    value: float
    unit: str
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        if self.at_most is None:
            return ""
        return f"{'met' if self.value <= self.at_most else 'not met'} (<= {self.at_most:.3g})"


@dataclass
class Section:
    """One interleaved comparison, or some figures. ``facts`` say what was measured."""

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def add(self, comparison: Comparison, what: str, against: str, goal: float | None = None) -> None:
        """A line of a comparison."""
        ratio = comparison.speed(what, against)
        self.lines.append(Line(what, against, ratio, None if goal is None else Goal(goal)))

    def markdown(self) -> str:
        """Headed by the title."""
        parts = [f"## {self.title}", "\n".join(f"- {name}: {fact}" for name, fact in self.facts.items())]
        if self.lines:
            rows = [f"| {x.what} | {x.against} | {x.ratio} | {x.verdict} |" for x in self.lines]
            head = "| speed of | relative to | ratio [95 %] | goal |\n| --- | --- | ---: | --- |"
            parts.append("\n".join([head, *rows]))
        if self.figures:
            rows = [f"| {x.what} | {x.value:.4g} {x.unit} | {x.verdict} |" for x in self.figures]
            parts.append("\n".join(["| figure | here | goal |\n| --- | ---: | --- |", *rows]))
        return "\n\n".join(part for part in parts if part)


class Cut(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came while measuring; ``sections`` are what there is."""

    def __init__(self, sections: list[Section]) -> None:
        super().__init__("stopped")
        self.sections = sections


def _markdown(title: str, machine: Mapping[str, Any], sections: Sequence[Section]) -> str:
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    return "\n\n".join([f"# {title}", facts, *(section.markdown() for section in sections)]) + "\n"


def _json(title: str, machine: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The same, with verdicts, for programs."""
    found = [asdict(section) for section in sections]
    for shown, section in zip(found, sections, strict=True):
        for entries, kind in ((section.lines, "lines"), (section.figures, "figures")):
            shown[kind] = [asdict(entry) | {"verdict": entry.verdict} for entry in entries]
    return json.dumps({"title": title, "machine": machine, "sections": found}, indent=1) + "\n"


def measure_and_keep(
    title: str, options: Any, measure: Callable[..., list[Section]], threads: int | None, out: Path | None
) -> None:
    """Print on what is measured, then ``measure(options, tell=print)``; ``options`` is a dataclass.

    What a measurement that was `Cut` short has found is kept, too.
    """
    if out is not None:
        if out.suffix not in (".json", ".md"):
            raise ValueError(f"--out {str(out)!r} must end in .json or .md, which is the format to write")
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
        "options": ", ".join(f"{name}={value}" for name, value in vars(options).items()),
    }
    print(_markdown(title, facts, ()))
    cut = None
    try:
        sections = measure(options, tell=lambda text: print(text, flush=True))
    except Cut as stop:
        cut, sections = stop, stop.sections
    if out is not None and (sections or cut is None):
        written = _json if out.suffix == ".json" else _markdown
        out.write_text(written(title, facts, sections), encoding="utf-8")
        print(f"kept as {out}")
    if cut is not None:
        raise cut
