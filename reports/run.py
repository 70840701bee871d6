"""A run as a report sees it: the plan, and of every cell that is over how it went, what it cost, what was measured."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from harness.benchmark import Metric, Record
from harness.compute.bill import Bill
from harness.run_folder import Best, CellFolder, CellState, Environment, Plan, PlannedBenchmark, PlannedCell, Trial
from harness.run_folder.plan import BudgetName, budget_order
from harness.run_folder.verify import opened, undisturbed
from reports.places import document_shown, shown


@dataclass(frozen=True)
class Cell:
    """A cell that is over, done or failed.

    ``bill`` is None for a cell that failed before it had one. ``records`` maps each benchmark to its records,
    ``second`` those whose answers the second judge judged too to its records of them. ``trials`` are those of its
    tuning and ``best`` how that ended; none and None for a cell that is not tuned.
    """

    planned: PlannedCell
    state: CellState
    folder: CellFolder
    bill: Bill | None
    records: dict[str, tuple[Record, ...]]
    second: dict[str, tuple[Record, ...]]
    trials: tuple[Trial, ...] = ()
    best: Best | None = None

    @property
    def done(self) -> bool:
        return self.state.status == "done"


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder that was read: ``cells`` are over, in table order; ``unfinished`` names those that are not.

    ``plan.baseline`` is what others are compared with (see `against`), ``suite_baseline`` what the suite says for it.
    """

    folder: Path
    plan: Plan
    suite_baseline: str
    environment: Environment
    cells: tuple[Cell, ...]
    unfinished: tuple[str, ...]

    def __repr__(self) -> str:
        cells = f"{len(self.cells)} cells" + (f", {len(self.unfinished)} unfinished" if self.unfinished else "")
        return f"<Run {self.plan.name} in {self.folder}: {len(self.plan.labels)} variants, {cells}>"

    def records(self) -> list[dict[str, Any]]:
        """Every measured item of the first judge with its cell's variant, budget and seed: rows for a data frame."""
        return [
            {"cell": planned.name, "variant": planned.variant, "method": planned.method, "budget": planned.budget}
            | {"seed": planned.seed, "benchmark": benchmark, "metric": record.metric, "item": record.item}
            | {"cluster": record.cluster, "value": record.value, "error": record.error}
            for cell in self.cells
            for planned in (cell.planned,)
            for benchmark, records in cell.records.items()
            for record in records
        ]

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Name -> metric, for every declared metric that has a record, in the suite's order."""
        measured = {r.metric for cell in self.cells for records in cell.records.values() for r in records}
        return {name: metric for name, metric in self.plan.metrics.items() if name in measured}

    def cells_of(self, variant: str, budget: BudgetName) -> list[Cell]:
        """The done cells of one row of the comparison, by seed; those without triples belong to every budget."""
        return [
            cell for cell in self._done_cells(variant) if cell.planned.budget == budget or not cell.planned.uses_triples
        ]

    def compared(self) -> Iterator[tuple[str, BudgetName, list[Cell]]]:
        """(variant, budget, done cells) of every row of the comparison."""
        for variant, budget in product(self.plan.labels, self.plan.budgets):
            yield variant, budget, self.cells_of(variant, budget)

    def fitted(self) -> Iterator[tuple[str, BudgetName, list[Cell]]]:
        """(variant, budget, done cells) by the cells' own budget, which is 0 without triples."""
        for variant in self.plan.labels:
            done = self._done_cells(variant)
            for budget in sorted({cell.planned.budget for cell in done}, key=budget_order):
                yield variant, budget, [cell for cell in done if cell.planned.budget == budget]

    def _done_cells(self, variant: str) -> list[Cell]:
        """No sweeps."""
        return self._done.get(variant, [])

    @cached_property
    def _done(self) -> dict[str, list[Cell]]:
        """Variant -> its done cells but those of sweeps, gathered once: every table asks for every variant."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.done and not cell.planned.sweep:
                found.setdefault(cell.planned.variant, []).append(cell)
        return found

    @property
    def sweeps(self) -> list[list[Cell]]:
        """The cells of every swept point, in table order."""
        points: dict[tuple, list[Cell]] = {}
        for cell in self.cells:
            if cell.planned.sweep:
                point = (cell.planned.variant, cell.planned.budget, *sorted(cell.planned.sweep.items()))
                points.setdefault(point, []).append(cell)
        return list(points.values())

    @property
    def unmeasured(self) -> list[tuple[str, str]]:
        """(cell, benchmark) wherever a cell that is done has no records of a benchmark of the suite."""
        done = [cell for cell in self.cells if cell.done]
        missing = [(c.planned.name, b.name) for c in done for b in self.plan.benchmarks if b.name not in c.records]
        missed_again = ((c, name) for c in done for name in self.plan.judged_twice if name not in c.second)
        return missing + [(c.planned.name, f"{name}, second judge") for c, name in missed_again]

    @property
    def complete(self) -> bool:
        """Whether all that was planned is there: no cell or record failed, none is missing."""
        both = (found for cell in self.cells for found in (*cell.records.values(), *cell.second.values()))
        return (
            not self.unfinished
            and not self.unmeasured
            and all(cell.done for cell in self.cells)
            and all(record.error is None for found in both for record in found)
        )

    @cached_property
    def controls(self) -> dict[str, str]:
        """Variant -> how its preferences were altered, where they were."""
        found = {variant.name: variant.preferences for variant in self.plan.variants}
        return {name: preferences for name, preferences in found.items() if preferences != "given"}

    @property
    def unmatched(self) -> list[tuple[BudgetName, int]]:
        """(number of triples, seed) wherever not all variants were fitted on the same triples, as they are meant to be.

        Controls, whose preferences are altered, are compared with their like; bills buy what triples they pay for.
        """
        seen: dict[tuple[BudgetName, int], dict[str, set[str | None]]] = {}
        for cell in self.cells:
            planned = cell.planned
            known = cell.done and planned.name not in self.unfinished
            if known and planned.uses_triples and isinstance(planned.budget, int):
                like = seen.setdefault((planned.budget, planned.seed), {})
                like.setdefault(self.controls.get(planned.variant, "given"), set()).add(cell.state.triples_hash)
        return [place for place, like in seen.items() if any(len(hashes) > 1 for hashes in like.values())]

    def against(self, baseline: str) -> "Run":
        """The same run with another variant as the one that others are compared with.

        Raises ValueError, with those it has, for a variant that it does not have.
        """
        if baseline not in self.plan.labels:
            raise ValueError(f"no variant is called {baseline!r}; the run has: {', '.join(self.plan.labels)}")
        return replace(self, plan=self.plan.model_copy(update={"baseline": baseline}))

    @property
    def commits(self) -> list[str]:
        """The commits whose code ran the cells, each once; "unknown" for cells that do not say."""
        return list(dict.fromkeys(cell.state.commit or "unknown" for cell in self.cells))

    @property
    def origins(self) -> dict[str, int]:
        """Run -> how many cells were copied from it."""
        return dict(Counter(cell.state.origin for cell in self.cells if cell.state.origin is not None))

    @property
    def hosts(self) -> dict[str, int]:
        """Machine -> the cells that it brought to their end; of older versions' cells nobody knows."""
        return dict(sorted(Counter(cell.state.host for cell in self.cells if cell.state.host is not None).items()))


def read_run(folder: str | Path, *, at_work: bool = False) -> Run:
    """Read the run in ``folder``; with ``at_work`` also what cells have measured that are not over yet, benchmark by
    benchmark. These are among ``unfinished`` all the same.

    Paths in what it holds are as a report shows them (see `reports.places`), but for the cells' hyper-parameters and
    what the records keep of prompts and answers. Raises ValueError naming the file (and line) for a folder that is not
    a run, a file that cannot be read or is not what was written (with the command that makes it again), an item
    recorded twice, or a record of a metric that its benchmark does not declare. What a run that works in the folder
    changes meanwhile is read again.
    """
    return undisturbed(folder, lambda: _read(Path(folder), at_work))


def _read(folder: Path, at_work: bool) -> Run:
    run = opened(folder)
    cells, unfinished = [], []
    for planned in run.plan.in_table_order:
        home = run.cell(planned.name)
        if (state := home.state) is None:
            unfinished.append(planned.name)
            if not at_work or home.bill is None or not any(home.records(b.name) for b in run.plan.benchmarks):
                continue
            git = run.environment.git
            state = CellState(status="done", error=None, commit=git and git.commit)
        twice = [benchmark for benchmark in run.plan.benchmarks if benchmark.judged_twice]
        records, second = _records(home, run.plan.benchmarks), _records(home.second, twice)
        trials = tuple(map(document_shown, home.tuning.trials))
        best = home.tuning.best and document_shown(home.tuning.best)
        cells.append(Cell(planned, document_shown(state), home, home.bill, records, second, trials, best))
    plan = document_shown(run.plan.model_copy(update={"cells": ()})).model_copy(update={"cells": run.plan.cells})
    environment = document_shown(run.environment)
    return Run(run.path, plan, plan.baseline, environment, tuple(cells), tuple(unfinished))


def _records(home: CellFolder, benchmarks: Iterable[PlannedBenchmark]) -> dict[str, tuple[Record, ...]]:
    found = {}
    for benchmark in benchmarks:
        declared = [metric.name for metric in benchmark.metrics]
        if (records := home.records(benchmark.name)) is None:
            continue
        for record in records:
            if record.metric not in declared:
                raise ValueError(
                    f"{home.path}: benchmark {benchmark.name!r} has a record of metric {record.metric!r}, which "
                    f"plan.json does not declare for it; declared: {', '.join(declared)}"
                )
        found[benchmark.name] = tuple(r if r.error is None else replace(r, error=shown(r.error)) for r in records)
    return found
