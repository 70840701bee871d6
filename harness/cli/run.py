"""``dspa-bench run``: what stands around harness.experiment on the terminal, from the plan to the leaderboard."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from harness.cli.options import AsJSON, Overrides, command_group, print_json
from harness.cli.plan import plan_json, print_plan, reused_text
from harness.cli.progress import Silent, display
from harness.cli.timetable import OnPaper, timetable_of
from harness.plugins import REPORTS, Report, declared
from harness.quiet import without_progress_bars

if TYPE_CHECKING:
    from harness.experiment.suite import Suite

commands = command_group()

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def _list(asked: bool) -> None:
    """Print the suites that can be run by name."""
    if not asked:
        return
    from harness.experiment.shipped import shipped

    for name, suite in shipped().items():
        print(f"{name:22} {suite.summary}")
    raise typer.Exit


@commands.command(
    epilog="Example: `dspa-bench run my.yaml --out runs/mine --set budgets='[50]' --set variants.dspa.params.alpha=0.5`"
)
def run(
    suite: Annotated[Path, typer.Argument(help="Suite file (YAML), or a name of --list.", metavar="SUITE")],
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/<suite name>")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")] = False,
    on: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="With --dry-run: forecast on so many devices.", show_default="1 with --device"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="With --dry-run: of this kind, e.g. h100; docs/scale.md lists them. Needs no weights."),
    ] = None,
    devices: Annotated[Path | None, typer.Option(help="YAML file of more devices.", metavar="FILE")] = None,
    as_json: AsJSON = False,
    max_cost: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="What the suite's judges may cost in all sittings together, AlpacaEval's annotators included.",
            show_default="the suite's",
        ),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another run: its complete cells that would be the same here are copied; benchmarks that it lacks are "
            "made. May be repeated."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this cell and no other; may be repeated.", metavar="CELL")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Run every n-th cell, from the i-th on: one of n processes, anywhere.", metavar="I/N"),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="Who runs the cells: local or ray (docs/ray.md).", show_default="the suite's, or local"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster that is to run the cells: HOST:PORT, or auto.", show_default="the suite's, or auto"
        ),
    ] = None,
    set_: Overrides = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing until the end, but for what failed.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the plan first, and lines, not bars, on a terminal too.")
    ] = False,
    _: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="Name the suites that come with it, and exit.")
    ] = False,
) -> None:
    """Run a suite: fit every method at every budget and seed, evaluate, and write the report.

    An interrupted run goes on where it stopped when the same command is given again; a complete one is left
    as it is and only the report is made anew. Cells that failed are tried again.

    Given several times at once, on one machine or on several that share the folder, the processes share the work:
    each cell is run by one of them, and all end when the run is complete. With --only or --shard a process ends
    when its own cells are; the last of them makes the report.

    Exit code 0: everything that was asked for is there. 1: some cells or records failed (they are named). 2: bad
    input, nothing was done.
    """
    if quiet and (verbose or dry_run):
        raise ValueError(f"--quiet says nothing of what --{'verbose' if verbose else 'dry-run'} asks for; give one")
    for option, given in {"--on": on, "--device": device, "--devices": devices, "--json": as_json}.items():
        if given and not dry_run:
            raise ValueError(f"{option} is about a plan, without a run; give --dry-run, too")
    if device is None and (on or devices):
        raise ValueError("--on and --devices need --device NAME, the kind of device; docs/scale.md lists those known")
    if address is not None and executor not in (None, "ray"):
        raise ValueError(
            f"--address is a Ray cluster's, and --executor {executor} asks for none; leave one of them out"
        )
    executor = executor or (None if address is None else "ray")
    placed = {"executor": executor, "address": address}
    set_ = [*(set_ or []), *(f"execution.{key}={json.dumps(value)}" for key, value in placed.items() if value)]
    how: dict[str, Any] = {"paper": None if device is None else OnPaper(device, on or 1, devices), "as_json": as_json}
    how |= {"max_cost": max_cost, "dry_run": dry_run, "quiet": quiet, "verbose": verbose}
    how |= {"only": only or (), "shard": shard}
    raise typer.Exit(run_command(suite, out, set_, reuse or (), **how))


def run_command(
    suite: Path,
    out: Path | None,
    overrides: Sequence[str],
    reused: Sequence[Path] = (),
    *,
    max_cost: float | None,
    dry_run: bool,
    quiet: bool = False,
    verbose: bool = False,
    paper: "OnPaper | None" = None,
    as_json: bool = False,
    only: Sequence[str] = (),
    shard: str | None = None,
) -> int:
    """What `run` does; returns the exit code."""
    from harness.experiment.outlook import needs
    from harness.experiment.run import prepare, run_suite
    from harness.experiment.sharing import missing, missing_text
    from harness.experiment.suite import load_suite

    without_progress_bars()
    reports = [entry.load() for entry in declared(REPORTS)]
    if max_cost is not None:
        overrides = [*overrides, *_cap(load_suite(suite, overrides), max_cost)]
    # Bound to today's stdout: while a cell runs in this process, what libraries print goes to the cell's log.
    width = None if sys.stdout.isatty() else 160  # a file has no width, and rich would take 80
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, width=width)
    prepared = prepare(suite, out, overrides, reused, on_paper=paper is not None, only=only, shard=shard)
    for note in () if quiet or as_json else prepared.checked.notes:
        console.print(f"note: {note}", markup=False)
    for line in () if as_json else prepared.damage:
        console.print(f"note: {line}; it is made again", markup=False)
    if (dry_run or verbose) and not as_json:
        print_plan(prepared, console, timetable_of(prepared, paper))
    mine = set(prepared.mine) - prepared.copied
    left = [c for c in prepared.plan.cells if c.name in mine and prepared.failures_of(c.name)]
    need = needs(prepared.suite, left, prepared.folder.path) if left and paper is None else None
    if need is not None:
        need.check()
    if as_json:
        print_json(plan_json(prepared, timetable_of(prepared, paper)))
        return 0
    cells, todo = len(prepared.plan.cells), len(left)
    share = "" if prepared.chosen is None else f", {len(prepared.mine)} of them for this process ({prepared.share})"
    if dry_run:
        if share:
            console.print(f"{cells} cells{share}, of which {todo} to do", markup=False)
        return 0
    if not quiet:
        to_do = f"{todo} to do{reused_text(prepared)}"
        console.print(f"{prepared.plan.name}: {cells} cells{share}, {to_do}, in {prepared.folder.path}")
        if need is not None:
            console.print(need.text, markup=False)
    try:
        with nullcontext(Silent()) if quiet else display(prepared, todo, console, lines=verbose) as progress:
            failures = run_suite(prepared, progress)
    except KeyboardInterrupt as stop:  # Ctrl-C, or SIGTERM, which has an exit code of its own
        print(f"{str(stop) or 'interrupted'}; give the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    for cell, reasons in failures.items():
        for reason in reasons:
            print(f"failed: {cell}: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {cells} cells are not complete; the same command tries them again", file=sys.stderr)
    left_over, others = missing(prepared.folder, prepared.plan), prepared.folder.claims.others()
    if not left_over and not others:
        show_reports(reports, prepared.folder.path, console)
    elif not left_over:  # of processes that end together the last one makes it
        console.print(f"the report is left to {others[0].label}, which is still at work", markup=False)
    if left_over or share:
        console.print(missing_text(left_over, cells), markup=False)
    return 1 if failures else 0


def show_reports(reports: Sequence[Callable[[Path], Report]], run: Path, console: Console) -> None:
    """Make the reports of ``run`` and say where they are."""
    for report in reports:
        made = report(run)
        if made.summary is not None:
            console.print(made.summary)
        console.print(f"report: {made.page}", markup=False)


def _cap(suite: "Suite", max_cost: float) -> list[str]:
    """Overrides that give all that spends money this cap, which is one for all of them: they share the ledger."""
    costly = [f"{key}.max_cost" for key, judge in suite.judges.items() if hasattr(judge, "max_cost")]
    costly += [f"benchmarks.{name}.{one.cap_key}" for name, one in suite.benchmarks.items() if one.cap_key is not None]
    if not costly:
        kinds = ", ".join(judge.name for judge in suite.judges.values()) or "none"
        raise ValueError(f"--max-cost: no judge of {suite.file.name} costs anything (judges: {kinds}); leave it out")
    return [f"{key}={max_cost}" for key in costly]
