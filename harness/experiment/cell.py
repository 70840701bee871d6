"""One cell: fit a method, evaluate the artifact by every benchmark, have the second judge look at the same answers."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from transformers import set_seed

from harness.benchmark import Benchmark, Record
from harness.compute import Bill, Meter
from harness.data.triples import Budget, Triple, load_triples
from harness.experiment.answering import Answering
from harness.experiment.forecast import Forecaster
from harness.experiment.plan import cell_triples, derive_seed
from harness.experiment.suite import Suite, load_suite
from harness.judging import Judge
from harness.method import AlignmentMethod
from harness.model.aligned import AlignedModel
from harness.provenance import code_commit
from harness.run_folder.cell import CellFolder, CellState
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import PlannedCell

T = TypeVar("T")
Notify = Callable[[str, str, int], object]
"""Told (cell, stage, number of records so far) as a cell goes along."""


@dataclass(frozen=True)
class CellContext:
    """What a process needs for cells of one run; base model and triples are read once and then shared."""

    suite: Suite
    folder: RunFolder

    @classmethod
    def open(cls, folder: Path) -> "CellContext":
        """That of the run in ``folder``, from its own suite.yaml."""
        return cls(load_suite(folder / "suite.yaml"), RunFolder(folder))

    @cached_property
    def cells(self) -> dict[str, PlannedCell]:
        return {cell.name: cell for cell in self.folder.plan.cells}

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
class Failures:
    """Why parts of a cell failed, and where."""

    errors: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    def attempt(self, part: str, work: Callable[[], T]) -> T | None:
        """What ``work`` returns; None when it raises, which is noted under the name ``part``."""
        try:
            return work()
        except Exception as problem:
            # Whatever a method or an evaluator raises, the other cells and benchmarks are still worth having.
            # The reason goes to cell.json, to the report and to the exit code, so nothing is swallowed.
            self.errors.append(f"{part}: {type(problem).__name__}: {problem}")
            self.tracebacks.append(f"{part}\n{traceback.format_exc()}")
            return None


def run_cell(context: CellContext, cell: PlannedCell, notify: Notify) -> None:
    """Bring ``cell`` to its end in the run folder; exceptions of its parts are recorded there, not raised."""
    code_commit()  # asked before the work, because the checkout may change during it
    suite, folder = context.suite, context.folder.cell(cell.name)
    first, second = Failures(), Failures()
    aligned = first.attempt("fit", lambda: _artifact(context, cell, folder, notify))

    def part(work: Callable[..., None], judge: Judge | None, name: str, stage: str) -> Callable[[], None]:
        seed = derive_seed(suite.file.seed, cell.name, name)
        told = partial(notify, cell.name, stage)
        return partial(work, aligned, name, suite.benchmarks[name], judge=judge, seed=seed, folder=folder, notify=told)

    if aligned is not None:
        for name in suite.benchmarks:
            if not folder.settled(name):
                first.attempt(name, part(evaluate, context.judge, name, name))
        for name in suite.judged_twice:
            settled = folder.second.settled(name) and folder.judged_alike(name)
            if folder.records(name) is not None and not settled:
                work = part(judge_again, context.second_judge, name, f"{name}, second judge")
                second.attempt(f"second judge, {name}", work)
    figures = {name: folder.diagnostics(name) for name in suite.benchmarks}
    state = CellState(
        status="failed" if first.errors else "done",
        error="; ".join(first.errors) or None,
        # Apart, because what the first judge said stands without it.
        second_judge_error="; ".join(second.errors) or None,
        triples_hash=_triples_hash(context, cell, aligned),
        fingerprint=aligned and aligned.fingerprint,
        commit=code_commit(),
        diagnostics={f"{name}.{key}": value for name, d in figures.items() for key, value in d.items()},
    )
    folder.finish(state, "\n".join(first.tracebacks + second.tracebacks) or None)


def _artifact(context: CellContext, cell: PlannedCell, folder: CellFolder, notify: Notify) -> AlignedModel:
    """The cell's model as it is on disk: what is measured is what is kept, also after a restart."""
    suite, base = context.suite, context.base
    if not folder.fitted:
        notify(cell.name, "fit", 0)
        budget = cell_triples(suite, cell, context.triples) if cell.uses_triples else None
        encoding = base.derive(encoded={})  # what the forecast tokenises, the fit need not
        method = suite.method_of(cell, context.folder.path)
        forecast = context.forecaster.of(method, budget, cell.flops_limit, base=encoding)
        aligned = fit(
            method,
            cell.method,
            encoding,
            forecast.budget,
            derive_seed(suite.file.seed, cell.name, "fit"),
            flops_limit=cell.flops_limit,
            predicted=forecast.stages,
        )
        folder.save_bill(Bill.model_validate(aligned.bill))
        aligned.save(folder.artifact)
    return AlignedModel.load(folder.artifact, base=base.base, device=suite.file.execution.device)


def _triples_hash(context: CellContext, cell: PlannedCell, aligned: AlignedModel | None) -> str | None:
    """Of the triples the fit was given, which under a bill may be fewer than there are; of all, when it failed."""
    if aligned is not None and aligned.budget is not None:
        return aligned.budget["hash"]
    return cell_triples(context.suite, cell, context.triples).hash if cell.uses_triples else None


def fit(
    method: AlignmentMethod,
    name: str,
    base: AlignedModel,
    budget: Budget | None,
    seed: int,
    *,
    flops_limit: int | None = None,
    predicted: dict[str, int] | None = None,
) -> AlignedModel:
    """Align ``base`` by ``method`` on ``budget`` (None for a method without triples), under a meter with the limit.

    The result carries the bill (with what was ``predicted`` beside it) and the identity of its triples.
    """
    # For code that draws from the global generators: what was done before in this process leaves no trace.
    set_seed(seed)
    triples = () if budget is None else budget.triples
    meter = Meter(base.model, flops_limit=flops_limit)
    with meter.running():
        aligned = method.fit(base, triples, meter=meter, seed=seed)
    if method.single_pass:
        meter.epochs = 1.0
    bill = meter.bill(method=name, n_triples=len(triples), predicted=predicted).model_dump(mode="json")
    provenance = None if budget is None else {"n": budget.size, "seed": budget.seed, "hash": budget.hash}
    return aligned.derive(budget=provenance, bill=bill, encoded=None)


def evaluate(
    aligned: AlignedModel,
    name: str,
    benchmark: Benchmark,
    *,
    judge: Judge | None,
    seed: int,
    folder: CellFolder,
    notify: Callable[[int], object],
) -> None:
    """Run ``benchmark``; answers, records and diagnostics go to ``folder``, the number of records to ``notify``.

    Answers that an earlier, interrupted evaluation left in ``folder`` are used and not generated again.
    """
    model = Answering(aligned, folder.answers(name))

    def measured() -> Iterator[Record]:
        yield from benchmark.run(model, judge=judge, seed=seed, folder=folder.path / (benchmark.files or name))
        # The records are renamed into place after this: wherever they are, the diagnostics are too.
        folder.save_diagnostics(name, model.figures())

    _write(measured(), name, benchmark, seed, folder, notify)


def judge_again(
    aligned: AlignedModel,
    name: str,
    benchmark: Benchmark,
    *,
    judge: Judge,
    seed: int,
    folder: CellFolder,
    notify: Callable[[int], object],
) -> None:
    """Have ``judge`` look at the answers of a benchmark that was run; its records go to ``folder.second``.

    Raises ValueError when they turn out to be about other answers than the first judge's (they had to be generated
    again, elsewhere).
    """
    model = Answering(aligned, folder.answers(name))
    files = folder.second.path / (benchmark.files or name)
    records = benchmark.judge_again(model, judge=judge, seed=seed, folder=files)
    _write(records, name, benchmark, seed, folder.second, notify)
    if not folder.judged_alike(name):
        raise ValueError(
            "the second judge was shown other answers than the first; remove records, answers, second and "
            f"{benchmark.files or name} from {folder.path} and rerun"
        )


def _write(
    records: Iterable[Record],
    name: str,
    benchmark: Benchmark,
    seed: int,
    folder: CellFolder,
    notify: Callable[[int], object],
) -> None:
    notify(0)
    set_seed(seed)
    for count, _ in enumerate(folder.write_records(name, benchmark.metrics, records), 1):
        notify(count)
