"""The bodies of ``dspa-bench data list``, ``fetch`` and ``verify``."""

import csv as csv_module
import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from harness.data.catalogue import DataFile, select
from harness.data.download import DownloadError
from harness.data.fetch import fetch
from harness.data.folder import DATA_VARIABLE, data_folder
from harness.data.state import State, state

COLUMNS = ("path", "benchmarks", "needed", "licence", "size", "sha256", "exact", "state", "url", "note")


def list_command(names: Sequence[str], folder: Path | None, *, csv: bool) -> None:
    """Print the catalogue with the state of every file, as text or as CSV."""
    root, files = _root(folder), select(list(names))
    states = [state(root, file) for file in files]
    if csv:
        writer = csv_module.writer(sys.stdout, lineterminator="\n")
        writer.writerow(COLUMNS)
        for found in states:
            row = {**found.file.model_dump(), "state": found.status, "benchmarks": " ".join(found.file.benchmarks)}
            writer.writerow([row[column] for column in COLUMNS])
        return
    print(f"data folder: {root}")
    for found in states:
        file = found.file
        use = "needed by" if file.needed else "used by"
        print(f"\n{found.status:8} {file.path}  ({use} {', '.join(file.benchmarks)})")
        size = "unknown size" if file.size is None else f"{file.size:,} bytes"
        print(f"         {size}, {file.licence}, sha256 {file.sha256 or 'not known yet'}")
        print(f"         {file.url or 'no public address'}")
        if file.note is not None:
            print(f"         {file.note}")
    print()
    _summary(states)


def fetch_command(names: Sequence[str], folder: Path | None) -> int:
    """Fetch what has an address and is not there; returns the exit code."""
    root, files = _root(folder), select(list(names))
    print(f"data folder: {root}")
    failed = False
    states = []
    with _lock(root):
        for file in files:
            found = state(root, file)
            if not found.there and file.url is not None:
                try:
                    found = _fetch(root, file)
                    print(f"fetched  {file.path}: {found.detail} ({file.licence})", flush=True)
                except DownloadError as problem:
                    failed = True
                    print(f"failed: {file.path}: {problem}", file=sys.stderr, flush=True)
            states.append(found)
    _summary(states)
    return int(failed)


def verify_command(names: Sequence[str], folder: Path | None) -> int:
    """Print the state of every file; returns the exit code."""
    root, files = _root(folder), select(list(names))
    if not root.is_dir():
        raise ValueError(f"there is no data folder {str(root)!r}; `dspa-bench data fetch` makes it")
    states = [state(root, file) for file in files]
    print(f"data folder: {root}")
    for found in states:
        print(f"{found.status:8} {found.file.path}{': ' if found.detail else ''}{found.detail}")
    _summary(states)
    differs = any(found.status == "differs" for found in states)
    wanted = [s for s in states if names and (s.file.needed or s.file.path in names)]
    return int(differs or any(not found.there for found in wanted))


def _root(folder: Path | None) -> Path:
    return data_folder() if folder is None else folder.expanduser()


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Two processes must not write one download."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".fetch.lock").open("w")
    except OSError as problem:
        raise ValueError(
            f"cannot write to the data folder {str(root)!r} ({problem.strerror}); "
            f"set {DATA_VARIABLE} or --folder to one that you may write to"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is fetching into {str(root)!r}; wait for it") from None
        yield


def _fetch(root: Path, file: DataFile) -> State:
    """`fetch` with a progress bar where somebody watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(file.path, total=file.size if file.unpack is None else None)
        return fetch(root, file, progress=lambda have, total: bars.update(bar, completed=have, total=total))


def _summary(states: Sequence[State]) -> None:
    """A line per benchmark: complete, or what is missing or wrong."""
    for name in dict.fromkeys(name for found in states for name in found.file.benchmarks):
        mine = [found for found in states if name in found.file.benchmarks]
        lacking = [found.file.path for found in mine if not found.there and found.file.needed]
        less = [found.file.path for found in mine if not found.there and not found.file.needed]
        text = f"missing or wrong: {', '.join(lacking)}" if lacking else "all that it needs is there"
        if less:
            text += f"; without: {', '.join(less)}"
        print(f"{name}: {text}")
