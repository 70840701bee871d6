"""``dspa-bench report`` and ``dspa-bench view``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Device, MovedBase, MovedSAEs, command_group, moved_saes

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


@commands.command(epilog="Example: `dspa-bench view runs/sandbox`")
def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; those at work are followed.")],
    host: Annotated[str, typer.Option(help="Address to listen at; anything but loopback is open to others.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8321,
    base: MovedBase = None,
    sae: MovedSAEs = None,
    device: Device = "cpu",
) -> None:
    """Browse runs in a local page: leaderboard, comparison, every answer, and what steering did to it token by token.

    The page follows runs that are going on. Nothing is written and nothing comes from the network. A trace of an
    answer's edits loads the cell's artifact and its base (DSPA, ridge scores, static SAE steering: by latent, with the
    passages that it fires on; other steering: by size). Ends with Ctrl-C.

    Exit code 2: bad input, such as a folder that is no run.
    """
    from harness.quiet import without_progress_bars
    from harness.run_folder import RunFolder
    from reports.view.server import Viewer, is_loopback
    from reports.view.traces import Tracer

    without_progress_bars()
    for run in runs:
        RunFolder.open(run)
    tracer = Tracer(base=base, saes=moved_saes(sae), device=device)
    with Viewer(runs, tracer, host=host, port=port) as server:
        if not is_loopback(host):
            print(
                f"warning: at {host} everybody who can reach this machine can read these runs, without a password",
                file=sys.stderr,
            )
        print(f"{server.url} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt as asked:
            if type(asked) is not KeyboardInterrupt:  # SIGTERM, which has an exit code of its own
                raise
            print(file=sys.stderr)
