"""``dspa-bench report``."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import command_group

commands = command_group()


@commands.command(epilog="Example: `dspa-bench report runs/sandbox`")
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Make the report of a run folder again: report.md, report.html, tables and figures.

    Exit code 0: the run is complete. 1: a cell or a record failed, or something planned is unfinished (the
    report names them). 2: bad input.
    """
    from reports.render import write_report
    from reports.run import read_run

    data = read_run(run)
    print(write_report(data))
    raise typer.Exit(0 if data.complete else 1)
