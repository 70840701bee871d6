"""``dspa-bench run``: the plan, the progress display and the closing words around harness.experiment."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.cli.options import Overrides, command_group
from harness.plugins import REPORTS, declared

if TYPE_CHECKING:
    from harness.experiment.executors import Progress as RunProgress
    from harness.experiment.forecast import Forecaster
    from harness.experiment.run import Prepared
    from harness.experiment.suite import Suite
    from harness.run_folder.plan import PlannedCell

commands = command_group()

PREVIEW_FLOPS = 10**12
"""What the plan measures on triples beforehand may take: some seconds on a CPU."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@commands.command(
    epilog="Example: `dspa-bench run my.yaml --out runs/mine --set budgets='[50]' --set variants.dspa.params.alpha=0.5`"
)
def run(
    suite: Annotated[Path, typer.Argument(help="Suite file (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/<suite name>")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")] = False,
    max_cost: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="What the suite's judges may cost in all sittings together (not AlpacaEval's own annotators).",
            show_default="the suite's",
        ),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Another run: its complete cells that would be the same here are copied; may be repeated."),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Run a suite: fit every method at every budget and seed, evaluate, and write the report.

    An interrupted run goes on where it stopped when the same command is given again; a complete one is left
    as it is and only the report is made anew. Cells that failed are tried again.

    Exit code 0: everything is there. 1: some cells or records failed (they are named). 2: bad input, nothing
    was done.
    """
    raise typer.Exit(run_command(suite, out, set_ or [], reuse or (), max_cost=max_cost, dry_run=dry_run))


def run_command(
    suite: Path,
    out: Path | None,
    overrides: Sequence[str],
    reused: Sequence[Path] = (),
    *,
    max_cost: float | None,
    dry_run: bool,
) -> int:
    """What `run` does; returns the exit code."""
    from harness.experiment.run import prepare, run_suite
    from harness.experiment.suite import load_suite

    reports = [entry.load() for entry in declared(REPORTS)]
    if max_cost is not None:
        overrides = [*overrides, *_cap(load_suite(suite, overrides), max_cost)]
    # Bound to today's stdout: while a cell runs in this process, what libraries print goes to the cell's log.
    width = None if sys.stdout.isatty() else 160  # a file has no width, and rich would take 80
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, width=width)
    prepared = prepare(suite, out, overrides, reused)
    for note in prepared.checked.notes:
        console.print(f"note: {note}", markup=False)
    for line in prepared.damage:
        console.print(f"note: {line}; it is made again", markup=False)
    if dry_run:
        print_plan(prepared, console)
        return 0
    cells, todo = len(prepared.plan.cells), len(prepared.failures) - len(prepared.reused)
    console.print(f"{prepared.plan.name}: {cells} cells, {todo} to do{_reused(prepared)}, in {prepared.folder.path}")
    try:
        with _display(prepared, todo, console) as progress:
            failures = run_suite(prepared, progress)
    except KeyboardInterrupt as stop:  # Ctrl-C, or SIGTERM, which has an exit code of its own
        print(f"{str(stop) or 'interrupted'}; give the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    for cell, reasons in failures.items():
        for reason in reasons:
            print(f"failed: {cell}: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {cells} cells are not complete; the same command tries them again", file=sys.stderr)
    for report in reports:
        console.print(f"report: {report(prepared.folder.path)}")
    return 1 if failures else 0


def _reused(prepared: "Prepared") -> str:
    """What a run says of the cells that it takes from others."""
    count = len(prepared.reused)
    return f", {count} to copy from other runs" if count else ""


def _cap(suite: "Suite", max_cost: float) -> list[str]:
    """Overrides that give each judge with prices this cap, which is one for all of them: they share the ledger."""
    costly = [key for key, judge in suite.judges.items() if hasattr(judge, "max_cost")]
    if not costly:
        kinds = ", ".join(judge.name for judge in suite.judges.values()) or "none"
        raise ValueError(f"--max-cost: no judge of {suite.file.name} costs anything (judges: {kinds}); leave it out")
    return [f"{key}.max_cost={max_cost}" for key in costly]


def print_plan(prepared: "Prepared", console: Console) -> None:
    """What a run would do: cells by variant and budget with their state, predicted bills, data, questions, machine."""
    from harness.experiment.forecast import Forecaster
    from harness.run_folder.plan import budget_text, flops_budget

    file, failures = prepared.suite.file, prepared.failures
    forecaster = Forecaster(file.base, device=file.execution.device)
    table = _table(f"{file.name} in {prepared.folder.path}", "cells", "done", "begun", "to do")
    bills = _table("predicted bill of each fit (executed FLOPs)", "FLOPs", "for")
    tuning = _table("tuning in each cell, before its fit", "trials", "fits", "predicted FLOPs", "")
    for point, method, budget in dict.fromkeys((c.point, c.method, c.budget) for c in prepared.plan.cells):
        cells = [c for c in prepared.plan.cells if (c.point, c.budget) == (point, budget)]
        left = [cell.name for cell in cells if cell.name in failures]
        begun = sum(prepared.folder.cell(name).path.exists() for name in left)
        counts = (len(cells), len(cells) - len(left), begun, len(left) - begun)
        row = (point, method, budget_text(budget) if budget else "none")
        table.add_row(*row, *map(str, counts))
        if cells[0].uses_triples:
            bills.add_row(*row, *_predicted(prepared, forecaster, cells[0]))
        if prepared.suite.tuned(cells[0]):
            tuning.add_row(*row, *_predicted_tuning(prepared, forecaster, cells[0]))
    console.print(table)
    if bills.rows:
        console.print(bills)
    for line in _previews(prepared, forecaster):
        console.print(line, markup=False)
    if tuning.rows:
        how = file.tune
        console.print(tuning)
        console.print(
            f"tuning: {how.search}, scored by {how.score} on {how.validation:.3g} of each budget's prompts; predicted "
            "are the trials' fits, with the variant's own values for those that are not known yet; scoring is extra"
        )
    todo = len(failures) - len(prepared.reused)
    console.print(f"cells: {len(prepared.plan.cells)}, of which {todo} to do{_reused(prepared)}")
    console.print(f"triples: {len(prepared.checked.triples)} in {file.triples.path}")
    budgets = [f"{', '.join(map(str, file.budgets))} triples"] if file.budgets else []
    budgets += [budget_text(flops_budget(flops)) for flops in file.flops_budgets]
    console.print(f"budgets: {', '.join(budgets)}, {file.seeds} seeds")
    for name, count in prepared.checked.prompts.items():
        console.print(f"benchmark {name}: {count} prompts a cell")
    first, second, execution = prepared.suite.judge, prepared.suite.second_judge, file.execution
    console.print(f"judge: {first.label if first else 'none'}")
    if second is not None:
        console.print(f"second judge: {second.label} on {', '.join(prepared.suite.judged_twice)}")
    console.print(f"device: {execution.device}, {execution.workers} workers with {execution.threads} threads each")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("variant", "method", "budget"):
        table.add_column(column, no_wrap=True, justify="right" if column == "budget" else "left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _predicted(prepared: "Prepared", forecaster: "Forecaster", cell: "PlannedCell") -> tuple[str, str]:
    """The predicted bill of ``cell``, and how far over the data it gets where that bill is its budget."""
    from harness.experiment.plan import cell_triples

    triples = cell_triples(prepared.suite, cell, prepared.checked.triples)
    method = prepared.suite.method_of(cell, prepared.folder.path)
    try:
        forecast = forecaster.of(method, triples, cell.flops_limit)
    except ValueError:  # its fit will fail and say so; the other cells may be worth running
        return "-", "less than a triple"
    if forecast.flops is None:
        return "-", ""
    if cell.flops_limit is None:
        return f"{forecast.flops:.4g}", ""
    if method.single_pass:
        assert forecast.budget is not None
        return f"{forecast.flops:.4g}", f"{len(forecast.budget.triples)} of {len(triples.triples)} triples"
    return f"{cell.flops_limit:.4g}", f"{cell.flops_limit / forecast.flops:.3g} x its epochs"


def _previews(prepared: "Prepared", forecaster: "Forecaster") -> Iterator[str]:
    """What methods can measure on the first triples of the largest budget before any fit; loads the base for it alone.

    A line for each figure and each value of it, with the variants that have it.
    """
    from harness.experiment.plan import cell_triples
    from harness.model.aligned import AlignedModel
    from harness.quiet import without_progress_bars

    without_progress_bars()
    file, measured, base = prepared.suite.file, {}, None
    lines: dict[str, list[str]] = {}
    for cell in prepared.plan.in_table_order:
        if not cell.uses_triples or cell.sweep or cell.seed or cell.budget != prepared.plan.budgets[-1]:
            continue
        triples = cell_triples(prepared.suite, cell, prepared.checked.triples)
        method = prepared.suite.method_of(cell, prepared.folder.path)
        preview = forecaster.preview(method, triples)
        if preview is None:
            continue
        if preview.flops > PREVIEW_FLOPS:
            text = f"what a fit prints of the triples was not measured, it takes {preview.flops:.3g} FLOPs"
            lines.setdefault(text, []).append(cell.variant)
            continue
        if preview.subject not in measured:
            base = base or AlignedModel.from_base(file.base, device=file.execution.device)
            measured[preview.subject] = preview.measure(base)
        for figure, value in measured[preview.subject].items():
            text = f"{figure} {value:.3g} on {len(triples.triples)} triples ({method.diagnostics[figure]})"
            lines.setdefault(text, []).append(cell.variant)
    return (f"{', '.join(variants)}: {text}" for text, variants in lines.items())


def _predicted_tuning(prepared: "Prepared", forecaster: "Forecaster", cell: "PlannedCell") -> tuple[str, str, str, str]:
    """Trials of ``cell``, their fits at most, what these are predicted to execute, and whether that is an estimate."""
    from harness.experiment.tuning import forecast

    suite = prepared.suite
    trials = suite.variant_of(cell).trials
    fits, flops, exact = forecast(suite, cell, prepared.folder.path, prepared.checked.triples, forecaster)
    text = "-" if flops is None else f"{flops:.4g}"
    return str(trials), str(fits), text, "" if flops is None or exact else "an estimate"


@contextmanager
def _display(prepared: "Prepared", todo: int, console: Console) -> Iterator["RunProgress"]:
    """Bars on a terminal, else a line for each stage, which a log file can hold."""
    if not console.is_terminal:
        yield _Lines(prepared, todo, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bars:
        yield _Bars(prepared, todo, bars)


class _Lines:
    """Plain lines: cell and stage as it begins, and how the cell ended."""

    def __init__(self, prepared: "Prepared", todo: int, console: Console) -> None:
        self.prepared, self.todo, self.console, self.count = prepared, todo, console, 0

    def stage(self, cell: str, stage: str, records: int) -> None:
        if records == 0:
            self.console.print(f"        {cell}: {stage}")

    def over(self, cell: str) -> None:
        self.count += 1
        self.console.print(f"[{self.count}/{self.todo}] {cell}: {_outcome(self.prepared, cell)}", markup=False)


class _Bars:
    """One bar over all cells, and one line for each cell that is running."""

    def __init__(self, prepared: "Prepared", todo: int, bars: Progress) -> None:
        self.prepared, self.bars = prepared, bars
        self.all = bars.add_task("cells", total=todo)
        self.running: dict[str, TaskID] = {}

    def stage(self, cell: str, stage: str, records: int) -> None:
        if cell not in self.running:
            self.running[cell] = self.bars.add_task(cell, total=None)
        # A benchmark need not know how many records it will give, so these bars have no end.
        self.bars.update(self.running[cell], description=f"  {cell}: {stage}", completed=records)

    def over(self, cell: str) -> None:
        if cell in self.running:
            self.bars.remove_task(self.running.pop(cell))
        outcome = _outcome(self.prepared, cell)
        if outcome != "done":
            self.bars.console.print(f"{cell}: {outcome}", markup=False)
        self.bars.advance(self.all)


def _outcome(prepared: "Prepared", cell: str) -> str:
    return "; ".join(prepared.failures_of(cell)) or "done"
