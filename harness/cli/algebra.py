"""``dspa-bench compare`` and ``rejudge``: reports out of runs that are there, without fitting or answering anything."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cli.options import command_group
from harness.cli.run import INTERRUPTED, show_reports
from harness.plugins import REPORTS, declared

commands = command_group()


@commands.command(epilog="Example: `dspa-bench compare runs/monday new=runs/tuesday --out runs/both`")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders; LABEL=RUN calls those of its variants LABEL.NAME that another run has otherwise.",
            metavar="RUN...",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; an earlier comparison there is replaced.")],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="VARIANT", help="What others are compared with.", show_default="the first run's"),
    ] = None,
) -> None:
    """Put the cells of several runs into one run folder and report on it: one leaderboard, all pairs.

    The runs must start from the same base model, seed, triples and judge, and measure by the same benchmark settings;
    what differs is named. Variants with the same name and settings are one, benchmarks that not all runs have are left
    out, budgets and seeds are joined.

    Exit code 0: the comparison is complete. 1: a cell failed or is unfinished (they are named). 2: bad input, or runs
    that are not comparable; nothing was made.
    """
    from harness.experiment.merging import Merged

    reports = [entry.load() for entry in declared(REPORTS)]
    merged = Merged.of(runs, out, baseline)
    for note in merged.notes:
        print(f"note: {note}")
    folder = merged.write()
    twice = folder.plan.judged_twice
    failures = {c.name: folder.cell(c.name).failures(folder.plan.benchmark_names, twice) for c in folder.plan.cells}
    for cell, reasons in failures.items():
        for reason in reasons:
            print(f"failed: {cell}: {reason}", file=sys.stderr)
    show_reports(reports, out, Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(1 if any(failures.values()) else 0)


@commands.command(
    epilog="Example: `dspa-bench rejudge runs/sandbox --judge openai --set judge.model=gpt-4o --max-cost 20 --dry-run`"
)
def rejudge(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    judge: Annotated[str, typer.Option(help="A kind of judge, or a YAML file with `kind:` and its settings.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="judge.KEY=VALUE", help="A setting of the judge; may be repeated."),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Judge the answers of this one alone; may be repeated.", show_default="all that were judged"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make.", show_default="RUN-by-JUDGE, beside the run")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="What the judge may cost in all sittings together.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what it takes, do nothing.")
    ] = False,
) -> None:
    """Have another judge judge the answers of a finished run: a new run folder with a report of its own.

    Fits, answers and what no judge measured are copied, no model is loaded and nothing is generated. Judged benchmarks
    that are not asked for are left out, and a second judge's verdicts. The same command goes on after an interruption,
    and pays for no verdict twice.

    Exit code 0: everything is judged. 1: some verdicts failed (the cells are named). 2: bad input, nothing was done.
    """
    from harness.cli.plan import judge_lines
    from harness.cli.progress import display
    from harness.experiment.rejudging import Rejudging

    reports = [entry.load() for entry in declared(REPORTS)]
    again = Rejudging.of(run, judge, set_ or (), benchmarks=benchmark or (), out=out, max_cost=max_cost)
    prepared, width = again.prepared, None if sys.stdout.isatty() else 160
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, width=width)
    for cell, reason in again.left_out.items():
        console.print(f"note: {cell} is left out: {reason}", markup=False)
    todo, judged = len(prepared.failures), ", ".join(again.judged)
    assert prepared.suite.judge is not None
    label = prepared.suite.judge.label
    console.print(
        f"{len(prepared.plan.cells)} cells, {todo} to judge by {label} on {judged}, in {prepared.folder.path}"
    )
    if dry_run:
        for line in judge_lines(prepared, todo, again.judged):
            console.print(line, markup=False)
        return
    try:
        with display(prepared, todo, console, lines=False) as progress:
            failures = again.run(progress)
    except KeyboardInterrupt as stop:
        print(f"{str(stop) or 'interrupted'}; give the same command again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    for cell, reasons in failures.items():
        for reason in reasons:
            print(f"failed: {cell}: {reason}", file=sys.stderr)
    show_reports(reports, prepared.folder.path, console)
    raise typer.Exit(1 if failures else 0)
