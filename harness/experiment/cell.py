"""One cell: fit a method, evaluate the artifact by every benchmark, have the second judge look at the same answers."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from socket import gethostname
from typing import TypeVar

from transformers import set_seed

from harness.benchmark import BenchmarkConfig, Record
from harness.compute.bill import Bill
from harness.compute.sitting import Sitting
from harness.data.triples import Triple, distinct, load_triples
from harness.discretion import discreet
from harness.engine.engine import Engine
from harness.engine.served import Served
from harness.experiment.answering import Answering
from harness.experiment.forecast import Forecaster
from harness.experiment.kept import Kept
from harness.experiment.plan import cell_triples, derive_seed
from harness.experiment.processes import fit_over
from harness.experiment.room import without_left_out
from harness.experiment.suite import Suite, load_suite
from harness.experiment.tuning import Scored, Tuning
from harness.heap import give_back_memory, settle
from harness.judging import Judge
from harness.model.aligned import AlignedModel
from harness.provenance import code_commit
from harness.run_folder.cell import CellFolder, CellState
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import PlannedCell
from harness.run_folder.verify import forget_fit

T = TypeVar("T")
Notify = Callable[[str, str, int], object]
"""Told (cell, stage, number of records so far) as a cell goes along."""


@dataclass(frozen=True)
class CellContext:
    """What a process needs for cells of one run; base model and triples are read once and then shared."""

    suite: Suite
    folder: RunFolder
    base_scores: dict[str, Scored] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "CellContext":
        """That of the run in ``folder``, from its own suite.yaml."""
        suite, run = load_suite(folder / "suite.yaml"), RunFolder(folder)
        return cls(replace(suite, benchmarks=without_left_out(suite.benchmarks, run.left_out.benchmarks)), run)

    @cached_property
    def cells(self) -> dict[str, PlannedCell]:
        return {cell.name: cell for cell in self.folder.plan.cells}

    @cached_property
    def base(self) -> AlignedModel:
        return AlignedModel.from_base(self.suite.file.base, device=self.suite.file.execution.device)

    @cached_property
    def engine(self) -> Engine | None:
        """What generates answers in the place of transformers; it starts when it is first asked."""
        config, how = self.suite.engine, self.suite.file.execution
        return config and config.start(self.suite.file.base, device=how.device, threads=how.threads)

    @cached_property
    def judges(self) -> dict[str, Judge]:
        return {key: judge.at(self.folder.judging) for key, judge in self.suite.judges.items()}

    @cached_property
    def benchmarks(self) -> dict[str, BenchmarkConfig]:
        return {name: benchmark.at(self.folder.judging) for name, benchmark in self.suite.benchmarks.items()}

    @cached_property
    def evaluation_prompts(self) -> list[str]:
        """Those of all benchmarks."""
        return [prompt for benchmark in self.suite.benchmarks.values() for prompt in benchmark.prompts()]

    @cached_property
    def forecaster(self) -> Forecaster:
        return Forecaster(self.suite.file.base, device=self.suite.file.execution.device)

    @cached_property
    def triples(self) -> list[Triple]:
        """Each once, without those that do not fit."""
        left = {item.name for item in self.folder.left_out.triples}
        return [t for t in distinct(load_triples(self.suite.file.triples.path)) if t.key not in left]


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
            self.errors.append(discreet(f"{part}: {type(problem).__name__}: {problem}"))
            self.tracebacks.append(discreet(f"{part}\n{traceback.format_exc()}"))
            return None


def run_cell(
    context: CellContext,
    cell: PlannedCell,
    notify: Notify,
    hung: str | None = None,
    host: str | None = None,
    lost: tuple[str, ...] = (),
) -> None:
    """Bring ``cell`` to its end in the run folder; exceptions of its parts are recorded there, not raised.

    ``hung`` says how an earlier attempt hung, if one did; ``host`` and ``lost`` are as in `CellState`.
    """
    code_commit()  # asked before the work, because the checkout may change during it
    settle()  # what the cell before left goes
    suite, folder = context.suite, context.folder.cell(cell.name)
    folder.reopen()
    first, second = Failures(), Failures()
    aligned = first.attempt("fit", lambda: _artifact(context, cell, folder, notify))
    served = aligned and first.attempt("engine", lambda: _served(context, folder, aligned))

    if served is not None:

        def evaluation(name: str, judge: Judge | None, stage: str, *, again: bool = False) -> Callable[[], None]:
            seed = derive_seed(suite.file.seed, str(cell.seed), name)  # every variant's: they draw the same noise
            settings = {"judge": judge, "seed": seed, "folder": folder, "notify": partial(notify, cell.name, stage)}
            return partial(evaluate, served, name, context.benchmarks[name], **settings, again=again)

        for name in suite.benchmarks:
            if not folder.settled(name):
                first.attempt(name, evaluation(name, context.judges.get("judge"), name))
        for name in suite.judged_twice:
            settled = folder.second.settled(name) and folder.judged_alike(name)
            if folder.records(name) is not None and not settled:
                work = evaluation(name, context.judges["second_judge"], f"{name}, second judge", again=True)
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
        host=host or gethostname(),
        hung=hung,
        lost=lost,
        diagnostics={f"{name}.{key}": value for name, d in figures.items() for key, value in d.items()},
    )
    folder.finish(state, "\n".join(first.tracebacks + second.tracebacks) or None)


def _artifact(context: CellContext, cell: PlannedCell, folder: CellFolder, notify: Notify) -> AlignedModel:
    """The cell's model as it is on disk: what is measured is what is kept, also after a restart."""
    suite, base = context.suite, context.base

    def load() -> AlignedModel:
        return AlignedModel.load(folder.artifact, base=base.base, device=suite.file.execution.device)

    if folder.artifact.is_dir():
        try:
            aligned = load()
            folder.save_bill(Bill.model_validate(aligned.bill))  # which may have been lost since
            return aligned
        except ValueError:  # it was whole when it was written
            forget_fit(folder, {one.name: one.files for one in context.folder.plan.benchmarks})
    budget = cell_triples(suite, cell, context.triples) if cell.uses_triples else None
    encoding = base.derive(encoded={})  # what the forecast tokenises, the fit need not
    method = suite.method_of(cell, context.folder.path)
    if budget is not None and suite.tuned(cell):
        best = Tuning(
            suite=suite,
            cell=cell,
            run=context.folder.path,
            base=encoding,
            budget=budget,
            judge=context.judges.get("judge"),
            forecaster=context.forecaster,
            evaluation_prompts=context.evaluation_prompts,
            notify=lambda stage: notify(cell.name, stage, 0),
            base_scores=context.base_scores,
        ).best(folder.tuning)
        method = suite.method_of(cell, context.folder.path, best.params)
    notify(cell.name, "fit", 0)
    forecast = context.forecaster.of(method, budget, cell.flops_limit, base=encoding)
    seed, limit = derive_seed(suite.file.seed, cell.name, "fit"), cell.flops_limit
    sitting = Sitting(
        folder.curve,
        folder.fitting,
        minutes=suite.file.execution.checkpoint_minutes,
        tell=lambda text, step: notify(cell.name, f"fit, {text}", step),
    )
    how = {"flops_limit": limit, "predicted": forecast.stages, "sitting": sitting}
    aligned = fit_over(suite.file.execution.per_fit, method, encoding, forecast.budget, seed, **how)
    folder.save_bill(Bill.model_validate(aligned.bill))
    aligned.save(folder.artifact)
    sitting.over()
    folder.manifest.seal()
    del aligned
    give_back_memory()
    return load()


def _served(context: CellContext, folder: CellFolder, aligned: AlignedModel) -> AlignedModel | Served:
    """``aligned`` as it answers: by the suite's engine, where it has one."""
    if context.engine is None:
        return aligned
    return Served.of(aligned, context.engine, folder.artifact, folder.path.name)


def _triples_hash(context: CellContext, cell: PlannedCell, aligned: AlignedModel | None) -> str | None:
    """Of the triples the fit was given, which under a bill may be fewer than there are; of all, when it failed."""
    if aligned is not None and aligned.budget is not None:
        return aligned.budget["hash"]
    return cell_triples(context.suite, cell, context.triples).hash if cell.uses_triples else None


def evaluate(
    aligned: AlignedModel | Served | Kept,
    name: str,
    benchmark: BenchmarkConfig,
    *,
    judge: Judge | None,
    seed: int,
    folder: CellFolder,
    notify: Callable[[int], object],
    again: bool = False,
) -> None:
    """Run ``benchmark``; answers, records and diagnostics go to ``folder``, the number of answers or, where it is
    larger, of records to ``notify``.

    Answers that an earlier, interrupted evaluation left in ``folder`` are used and not generated again. With ``again``
    the benchmark was run, and ``judge``, the second one, looks at the same answers: its records go to
    ``folder.second``. ValueError when they turn out to be about other answers than the first judge's (they had to be
    generated again, elsewhere).
    """
    answered = 0

    def tell(new: int) -> None:
        nonlocal answered
        answered += new
        notify(answered)

    model = Answering(aligned, folder.answers(name), tell)
    home = folder.second if again else folder
    run: Callable[..., Iterator[Record]] = benchmark.judge_again if again else benchmark.run

    def measured() -> Iterator[Record]:
        for record in run(model, judge=judge, seed=seed, folder=home.path / benchmark.folder(name)):
            yield replace(record, metric=benchmark.column(record.metric, name))
        if not again:
            # The records are renamed into place after this: wherever they are, the diagnostics are too.
            folder.save_diagnostics(name, model.figures())

    notify(0)
    set_seed(seed)
    # What was marked by an earlier evaluation is about to change.
    made = (benchmark.folder(name), f"records/{name}.jsonl", f"diagnostics/{name}.json")
    folder.manifest.drop(*(f"second/{place}" if again else place for place in made))
    for count, _ in enumerate(home.write_records(name, benchmark.columns(name), measured()), 1):
        notify(max(count, answered))
    if again and not folder.judged_alike(name):
        raise ValueError(
            "the second judge was shown other answers than the first; remove records, answers, second and "
            f"{benchmark.folder(name)} from {folder.path} and rerun"
        )
    folder.manifest.seal()
