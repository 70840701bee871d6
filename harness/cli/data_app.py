"""``dspa-bench data``: what there is, bring it, check it."""

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(no_args_is_help=True, help="External files of the benchmarks: list, fetch and verify them.")

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Benchmarks, or files by their place.", show_default="all", metavar="[NAME]..."),
]
Folder = Annotated[
    Path | None,
    typer.Option(help="Data folder.", show_default="$DSPA_BENCH_DATA, else ~/.cache/dspa-bench"),
]


@data.command("list", epilog="Example: `dspa-bench data list alpaca_eval`")
def list_(
    names: Names = None,
    folder: Folder = None,
    csv: Annotated[bool, typer.Option("--csv", help="Everything that is known, as CSV.")] = False,
) -> None:
    """Name every external file with source, licence and size, and say which are missing for which benchmark."""
    from harness.cli.data import list_command

    list_command(names or [], folder, csv=csv)


@data.command(epilog="Example: `dspa-bench data fetch mt_bench alpaca_eval`")
def fetch(names: Names = None, folder: Folder = None) -> None:
    """Download what is not there yet, check it, and say what is still missing.

    An interrupted download goes on where it stopped when the same command is given again. The licence of each file is
    its source's: see `dspa-bench data list`.

    Exit code 0: all that has an address is there. 1: something could not be fetched (it is named).
    """
    from harness.cli.data import fetch_command

    raise typer.Exit(fetch_command(names or [], folder))


@data.command(epilog="Example: `dspa-bench data verify alpaca_eval`")
def verify(names: Names = None, folder: Folder = None) -> None:
    """Compare the files that are there with their sha256, and say which are missing for which benchmark.

    Exit code 0: nothing that is there differs, and what was asked for by name is there. 1: otherwise.
    """
    from harness.cli.data import verify_command

    raise typer.Exit(verify_command(names or [], folder))
