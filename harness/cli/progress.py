"""What ``dspa-bench run`` shows while it runs: bars on a terminal, else lines; how much is done, and what is left."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from harness.experiment.executors import Progress as RunProgress
    from harness.experiment.run import Prepared

LEAST_DONE = 0.01
"""Share of the work before which nothing is said of the time that is left."""

EVERY_SECONDS = 60.0
"""How often plain lines say how far a stage is."""


def planned_answers(prepared: "Prepared") -> dict[str, int]:
    """Benchmark -> the answers that it asks of a model, where it says so beforehand and is not made of given ones."""
    from harness.benchmark import PromptBenchmark

    found = {}
    for name, benchmark in prepared.suite.benchmarks.items():
        items = benchmark.items() if isinstance(benchmark, PromptBenchmark) else ()
        if count := sum(item.rounds for item in items if item.generated):
            found[name] = count
    return found


class Pace:
    """How far a run is, counted in answers (in cells where there are none), and what is left at the pace so far.

    A fit has no answers, so this is rough: a run whose slow fits come last takes longer than it says.
    """

    def __init__(self, answers: Mapping[str, int], cells: int, now: float | None = None) -> None:
        self.answers, self.cells, self.over = answers, cells, 0
        self._start = time.monotonic() if now is None else now
        self._running: dict[str, dict[str, int]] = {}

    def stage(self, cell: str, stage: str, done: int) -> int | None:
        """Note what a cell did of a stage; how much that stage has in all, None where nobody knows."""
        total = self.answers.get(stage)
        counts = self._running.setdefault(cell, {})
        if total is not None:
            counts[stage] = min(max(done, counts.get(stage, 0)), total)
        return total

    def end(self, cell: str) -> None:
        self._running.pop(cell, None)
        self.over += 1

    @property
    def done(self) -> float:
        """Share of the cells, running ones by the share of their answers."""
        a_cell = sum(self.answers.values())
        running = sum(sum(counts.values()) for counts in self._running.values()) / a_cell if a_cell else 0.0
        return min((self.over + running) / self.cells, 1.0) if self.cells else 1.0

    def left(self, now: float | None = None) -> str:
        """``about 12 min left``, or "" while too little is done to say."""
        if not LEAST_DONE <= self.done < 1:
            return ""
        elapsed = (time.monotonic() if now is None else now) - self._start
        return f"about {duration(elapsed * (1 - self.done) / self.done)} left"


def duration(seconds: float) -> str:
    """Seconds in words that are no more exact than they are: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def display(prepared: "Prepared", todo: int, console: Console, *, lines: bool) -> Iterator["RunProgress"]:
    """Bars on a terminal, unless ``lines`` are wanted, else a line for each stage, which a log file can hold."""
    pace = Pace(planned_answers(prepared), todo)
    if lines or not console.is_terminal:
        yield Lines(prepared, pace, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    columns += (TextColumn("{task.fields[left]}"),)
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bars:
        yield Bars(prepared, pace, bars)


class Silent:
    """Nothing."""

    def stage(self, cell: str, stage: str, records: int) -> None: ...

    def over(self, cell: str) -> None: ...


class Lines:
    """Plain lines: cell and stage as it begins, how far it is about once a minute, and how the cell ended."""

    def __init__(self, prepared: "Prepared", pace: Pace, console: Console) -> None:
        self.prepared, self.pace, self.console = prepared, pace, console
        self._said: dict[str, float] = {}

    def stage(self, cell: str, stage: str, records: int) -> None:
        total, now = self.pace.stage(cell, stage, records), time.monotonic()
        if records and now - self._said.setdefault(cell, now) < EVERY_SECONDS:
            return
        self._said[cell] = now
        done = f"{records} of " if records else ""
        answers = "" if total is None else f", {done}{total} answers"
        self.console.print(f"        {cell}: {stage}{answers}", markup=False)

    def over(self, cell: str) -> None:
        self._said.pop(cell, None)
        self.pace.end(cell)
        left = f", {text}" if (text := self.pace.left()) else ""
        count = f"[{self.pace.over}/{self.pace.cells}]"
        self.console.print(f"{count} {cell}: {_outcome(self.prepared, cell)}{left}", markup=False)


class Bars:
    """One bar over all cells, and one line for each cell that is running."""

    def __init__(self, prepared: "Prepared", pace: Pace, bars: Progress) -> None:
        self.prepared, self.pace, self.bars = prepared, pace, bars
        self.all = bars.add_task("cells", total=pace.cells, left="")
        self.running: dict[str, TaskID] = {}

    def stage(self, cell: str, stage: str, records: int) -> None:
        if cell not in self.running:
            self.running[cell] = self.bars.add_task(cell, total=None, left="")
        total = self.pace.stage(cell, stage, records)
        done = records if total is None else min(records, total)
        self.bars.update(self.running[cell], description=f"  {cell}: {stage}", completed=done, total=total)
        self.bars.update(self.all, left=self.pace.left())

    def over(self, cell: str) -> None:
        self.pace.end(cell)
        if cell in self.running:
            self.bars.remove_task(self.running.pop(cell))
        outcome = _outcome(self.prepared, cell)
        if outcome != "done":
            self.bars.console.print(f"{cell}: {outcome}", markup=False)
        self.bars.update(self.all, advance=1, left=self.pace.left())


def _outcome(prepared: "Prepared", cell: str) -> str:
    return "; ".join(prepared.failures_of(cell)) or "done"
