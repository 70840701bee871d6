"""``dspa-bench data``: name the benchmarks' external files, fetch them, check them."""

import csv as csv_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.data.external import State

data = typer.Typer(no_args_is_help=True, help="External files of the benchmarks: list, fetch and verify them.")

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Benchmarks, or files by their place.", show_default="all", metavar="[NAME]..."),
]
Folder = Annotated[
    Path | None, typer.Option(help="Data folder.", show_default="$DSPA_BENCH_DATA, else ~/.cache/dspa-bench")
]


@data.command("list", epilog="Example: `dspa-bench data list alpaca_eval`")
def list_(
    names: Names = None,
    folder: Folder = None,
    csv: Annotated[bool, typer.Option("--csv", help="Everything that is known, as CSV.")] = False,
) -> None:
    """Name every external file with source, licence and size, and say which are missing for which benchmark."""
    from harness.data.external import select, state

    root = _root(folder)
    states = [state(root, file) for file in select(names or [])]
    if csv:
        columns = ("path", "benchmarks", "needed", "licence", "size", "sha256", "exact", "state", "url")
        columns += ("package", "note")
        writer = csv_module.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        for row in states:
            cells = {**row.file.model_dump(), "state": row.status, "benchmarks": " ".join(row.file.benchmarks)}
            writer.writerow([cells[column] for column in columns])
        return
    print(f"data folder: {root}")
    for row in states:
        file = row.file
        print(f"\n{row.status:8} {file.path}  ({'needed' if file.needed else 'used'} by {', '.join(file.benchmarks)})")
        size = "unknown size" if file.size is None else f"{file.size:,} bytes"
        print(f"         {size}, {file.licence}, sha256 {file.sha256 or 'not known yet'}")
        print(f"         {file.address or 'no public address'}")
        if file.note is not None:
            print(f"         {file.note}")
    print()
    _summary(states)


@data.command(epilog="Example: `dspa-bench data fetch mt_bench alpaca_eval`")
def fetch(names: Names = None, folder: Folder = None) -> None:
    """Download what is not there yet, check it, and say what is still missing.

    A file appears whole or not at all: after an interruption, the same command fetches what is missing. The licence of
    each file is its source's: see `dspa-bench data list`.

    Exit code 0: all that has an address is there. 1: something could not be fetched (it is named).
    """
    from harness.data.external import DATA_VARIABLE, DownloadError, select, state
    from harness.data.external import fetch as fetch_file
    from harness.files import locked

    root, files = _root(folder), select(names or [])
    print(f"data folder: {root}")
    states, failed = [], False
    busy = f"another process is fetching into {str(root)!r}; wait for it"
    mend = f"set {DATA_VARIABLE} or --folder to one that you may write to"
    with locked(root / ".fetch.lock", "data folder", busy=busy, mend=mend):
        for file in files:
            found = state(root, file)
            if not found.there and file.address is not None:
                try:
                    found = fetch_file(root, file, progressbar=sys.stderr.isatty())
                    print(f"fetched  {file.path}: {found.detail} ({file.licence})", flush=True)
                except DownloadError as problem:
                    failed = True
                    print(f"failed: {file.path}: {problem}", file=sys.stderr, flush=True)
            states.append(found)
    _summary(states)
    raise typer.Exit(int(failed))


@data.command(epilog="Example: `dspa-bench data verify alpaca_eval`")
def verify(names: Names = None, folder: Folder = None) -> None:
    """Compare the files that are there with their sha256, and say which are missing for which benchmark.

    Exit code 0: nothing that is there differs, and what was asked for by name is there. 1: otherwise.
    """
    from harness.data.external import select, state

    root, files = _root(folder), select(names or [])
    if not root.is_dir():
        raise ValueError(f"there is no data folder {str(root)!r}; `dspa-bench data fetch` makes it")
    states = [state(root, file) for file in files]
    print(f"data folder: {root}")
    for row in states:
        print(f"{row.status:8} {row.file.path}{': ' if row.detail else ''}{row.detail}")
    _summary(states)
    differs = any(row.status == "differs" for row in states)
    wanted = [row for row in states if names and (row.file.needed or row.file.path in names)]
    raise typer.Exit(int(differs or any(not row.there for row in wanted)))


def _root(folder: Path | None) -> Path:
    from harness.data import data_folder

    return data_folder() if folder is None else folder.expanduser()


def _summary(states: "Sequence[State]") -> None:
    """A line per benchmark: complete, or what is missing or wrong."""
    for name in dict.fromkeys(name for row in states for name in row.file.benchmarks):
        absent = [row.file for row in states if name in row.file.benchmarks and not row.there]
        lacking = [file.path for file in absent if file.needed]
        less = [file.path for file in absent if not file.needed]
        text = f"missing or wrong: {', '.join(lacking)}" if lacking else "all that it needs is there"
        if less:
            text += f"; without: {', '.join(less)}"
        print(f"{name}: {text}")
