"""Runs one cell: fit (or load what was fitted), every benchmark that is not settled, the second judge on the same."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from harness.experiment.forecast import Forecaster
from harness.experiment.plan import Cell, cell_triples, derive_seed, plan
from harness.experiment.steps import evaluate, fit, judge_again
from harness.experiment.store import CellFolder, RunFolder
from harness.experiment.suite import Suite, load_suite
from harness.judging import Judge
from harness.model import AlignedModel
from harness.preferences import Triple, load_triples
from harness.provenance import code_commit

T = TypeVar("T")
Notify = Callable[[str, str, int], object]
"""Told (cell, stage, number of records so far) as a cell goes along."""


@dataclass(frozen=True)
class Workplace:
    """What a process needs for cells of one run; base model and triples are read once and then shared."""

    suite: Suite
    folder: RunFolder

    @classmethod
    def open(cls, folder: Path) -> "Workplace":
        """The workplace of the run in ``folder``, from its own suite.yaml."""
        return cls(load_suite(folder / "suite.yaml"), RunFolder(folder))

    @cached_property
    def cells(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in plan(self.suite)}

    @cached_property
    def base(self) -> AlignedModel:
        return AlignedModel.from_base(self.suite.file.base, device=self.suite.file.execution.device)

    @cached_property
    def judge(self) -> Judge | None:
        return self.suite.judge and self.suite.judge.at(self.folder.judging)

    @cached_property
    def second_judge(self) -> Judge | None:
        return self.suite.second_judge and self.suite.second_judge.at(self.folder.judging)

    @cached_property
    def forecaster(self) -> Forecaster:
        return Forecaster(self.suite.file.base, device=self.suite.file.execution.device)

    @cached_property
    def triples(self) -> list[Triple]:
        return load_triples(self.suite.file.triples.path)


@dataclass
class _Attempts:
    """Runs the parts of a cell and keeps what went wrong."""

    errors: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    def run(self, part: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except Exception as problem:
            # Whatever a method or an evaluator raises, the other cells and benchmarks are still worth having.
            # The reason goes to cell.json, to the report and to the exit code, so nothing is swallowed.
            self.errors.append(f"{part}: {type(problem).__name__}: {problem}")
            self.tracebacks.append(f"{part}\n{traceback.format_exc()}")
            return None


def run_cell(work: Workplace, cell: Cell, notify: Notify) -> None:
    """Bring ``cell`` to its end in the run folder; exceptions of its parts are recorded there, not raised."""
    code_commit()  # asked before the work, because the checkout may change during it
    folder = work.folder.cell(cell.name)
    attempts, again = _Attempts(), _Attempts()
    aligned = attempts.run("fit", lambda: _artifact(work, cell, folder, notify))
    if aligned is not None:
        for name in work.suite.benchmarks:
            if not folder.settled(name):
                attempts.run(name, lambda n=name: _evaluate(work, cell, folder, aligned, n, notify))
        for name in work.suite.judged_twice:
            settled = folder.second.settled(name) and folder.judged_alike(name)
            if folder.records(name) is not None and not settled:
                part = f"second judge, {name}"
                again.run(part, lambda n=name: _judge_again(work, cell, folder, aligned, n, notify))
    figures = {name: folder.diagnostics(name) for name in work.suite.benchmarks}
    state = {
        **cell.describe(),
        "commit": code_commit(),
        "triples_hash": _triples_hash(work, cell, aligned),
        "fingerprint": aligned and aligned.fingerprint,
        "status": "failed" if attempts.errors else "done",
        "error": "; ".join(attempts.errors) or None,
        # Apart, because what the first judge said stands without it.
        "second_judge_error": "; ".join(again.errors) or None,
        "diagnostics": {f"{name}.{key}": value for name, d in figures.items() for key, value in d.items()},
    }
    folder.finish(state, "\n".join(attempts.tracebacks + again.tracebacks) or None)


def _artifact(work: Workplace, cell: Cell, folder: CellFolder, notify: Notify) -> AlignedModel:
    """The cell's model as it is on disk: what is measured is what is kept, also after a restart."""
    if not folder.fitted:
        notify(cell.name, "fit", 0)
        budget = cell_triples(work.suite, cell, work.triples) if cell.uses_triples else None
        forecast = work.forecaster.of(cell.method, budget, cell.flops_limit)
        seed = derive_seed(work.suite.file.seed, cell.name, "fit")
        limit, predicted = cell.flops_limit, forecast.stages
        aligned = fit(
            cell.method, cell.method_name, work.base, forecast.budget, seed, flops_limit=limit, predicted=predicted
        )
        folder.save_bill(aligned.bill)
        aligned.save(folder.artifact)
    device = work.suite.file.execution.device
    return AlignedModel.load(folder.artifact, base=work.base.base, device=device)


def _triples_hash(work: Workplace, cell: Cell, aligned: AlignedModel | None) -> str | None:
    """Of the triples the fit was given, which under a bill may be fewer than there are; of all, when it failed."""
    if aligned is not None and aligned.budget is not None:
        return aligned.budget["hash"]
    return cell_triples(work.suite, cell, work.triples).hash if cell.uses_triples else None


def _evaluate(
    work: Workplace, cell: Cell, folder: CellFolder, aligned: AlignedModel, name: str, notify: Notify
) -> None:
    evaluate(
        aligned,
        name,
        work.suite.benchmarks[name],
        judge=work.judge,
        seed=derive_seed(work.suite.file.seed, cell.name, name),
        folder=folder,
        notify=lambda count: notify(cell.name, name, count),
    )


def _judge_again(
    work: Workplace, cell: Cell, folder: CellFolder, aligned: AlignedModel, name: str, notify: Notify
) -> None:
    assert work.second_judge is not None
    judge_again(
        aligned,
        name,
        work.suite.benchmarks[name],
        judge=work.second_judge,
        seed=derive_seed(work.suite.file.seed, cell.name, name),
        folder=folder,
        notify=lambda count: notify(cell.name, f"{name}, second judge", count),
    )
