"""``dspa-bench compare`` and ``rejudge``: reports out of runs that are there, without fitting or answering anything."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cli.options import command_group
from harness.plugins import REPORTS, Report, declared

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


def show_reports(reports: list, run: Path, console: Console) -> None:
    """Make every declared report of ``run`` and say where it is."""
    for report in reports:
        made: Report = report(run)
        if made.summary is not None:
            console.print(made.summary)
        console.print(f"report: {made.page}", markup=False)
