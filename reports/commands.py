"""``dspa-bench report``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import command_group

commands = command_group()


@commands.command(epilog="Example: `dspa-bench report runs/sandbox --baseline dpo --out runs/sandbox-against-dpo`")
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="VARIANT", help="What others are compared with.", show_default="the suite's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; an earlier report there is replaced.", show_default="RUN/report"),
    ] = None,
) -> None:
    """Make the report of a run folder again: report.md, report.html, tables (CSV, LaTeX) and figures (PNG, SVG).

    Nothing is measured again: with another baseline the same records are compared with those of another variant.

    Exit code 0: the run is complete. 1: a cell or a record failed, or something planned is unfinished (the
    report names them). 2: bad input, or files that are not what was written (with the command that makes them again).
    """
    from harness.run_folder import RunFolder
    from harness.run_folder.verify import unverified
    from reports.render import check_report_folder, write_report
    from reports.run import read_run

    if out is not None:
        check_report_folder(out, run)
    data = read_run(run)
    if old := unverified(RunFolder(run)):
        note = f"note: {len(old)} of {len(data.plan.cells)} cells are of a version that kept no checksums: not verified"
        print(note, file=sys.stderr)
    print(write_report(data if baseline is None else data.against(baseline), out))
    raise typer.Exit(0 if data.complete else 1)
