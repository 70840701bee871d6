"""``dspa-bench data``: name, fetch and check the benchmarks' external files; split preference data of one's own."""

import csv as csv_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.options import MAX_SEED, AsJSON, print_json

if TYPE_CHECKING:
    from harness.data.external import State

data = typer.Typer(
    no_args_is_help=True, help="Benchmarks' external files: list, fetch, verify. Your own preference data: split."
)

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
    as_json: AsJSON = False,
) -> None:
    """Name every external file with source, licence and size, and say which are missing for which benchmark."""
    from harness.data.external import select, state

    root = _root(folder)
    states = [state(root, file) for file in select(names or [])]
    if as_json:
        print_json([{**row.file.model_dump(mode="json"), "state": row.status} for row in states])
        return
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


@data.command(
    epilog="Example: `dspa-bench data split pairs.parquet --out data/pairs --part train=0.6 --part heldout=0.2 "
    "--part reward=0.2`"
)
def split(
    file: Annotated[
        Path,
        typer.Argument(
            help="Preference data: JSONL, JSON array, Parquet, CSV, a datasets folder (FOLDER#SPLIT), or "
            "hub:OWNER/NAME#SPLIT."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE",
            help="A file NAME.jsonl with this share of the prompts; may be repeated.",
            show_default="train=0.8, validation=0.1, heldout=0.1",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the draw.")] = 0,
    bad_rows: Annotated[
        Literal["refuse", "skip"], typer.Option(help="What to do about rows that are no triple.")
    ] = "refuse",
) -> None:
    """Split preference data into files of our triples format that share no prompt.

    Prompts with the same first user turn, up to case and spacing, go to the same file, and repeated triples are written
    once. The same data, shares and seed give the same files. split.json beside them has counts, hashes and the rows
    that were left out.
    """
    from harness.data.split import DEFAULT_PARTS, parse_parts, split_parts, write_split
    from harness.data.triples import TripleFile
    from harness.files import check_can_make

    shares = parse_parts(part) if part else DEFAULT_PARTS
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already and is never overwritten; give a new folder")
    check_can_make(out)
    source = TripleFile.read(file, skip_bad=bad_rows == "skip")
    found = split_parts(source, shares, seed)
    written = write_split(found, file, shares, seed, out)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    if source.refused:
        number, why = source.refused[0]
        of = f"{len(source.refused)} of {len(source.rows.rows)} {source.rows.unit}s are no triples and left out"
        print(f"note: {of}: {source.named([n for n, _ in source.refused])}; {number}: {why}", file=sys.stderr)
    for name, described in written["parts"].items():
        print(f"{out / described['file']}: {described['triples']} triples on {described['prompts']} prompts ({name})")
    if found.left:
        print(f"left over: {written['left_over']['triples']} triples on {written['left_over']['prompts']} prompts")


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
