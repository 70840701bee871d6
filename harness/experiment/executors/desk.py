"""Where the tasks of a cluster report; it runs beside the driver, as a Ray actor of one process.

For nodes that do not see the run folder it also reads and writes there: files, a judge's journals, and who asks what.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.experiment.executors.cargo import CHUNK
from harness.judging.verdicts import appending, read_lines
from harness.run_folder.layout import RunFolder


class Place(NamedTuple):
    """A worker process: ``host`` is the name of its machine with the beginning of Ray's ``node`` id."""

    node: str
    host: str
    pid: int


@dataclass(frozen=True)
class Sign:
    """What the worker at ``place`` that has a cell said last, in the cell's ``attempt``-th attempt (from 0 on);
    ``stage`` is "" before its first stage."""

    attempt: int
    place: Place
    stage: str = ""
    records: int = 0


class Entry(NamedTuple):
    """A file of a cell: its ``name`` relative to the cell, bytes, and time of change in nanoseconds."""

    name: str
    size: int
    changed: int


Owner = tuple[str, int]
"""A cell, and its attempt."""


class Desk:
    """The newest sign of each cell that gave one since it was asked, and the run ``folder`` for who does not see it."""

    def __init__(self, folder: Path) -> None:
        self._run = RunFolder(folder)
        self._news: dict[str, Sign] = {}
        self._asked: dict[str, Owner] = {}  # the key of a judge's question -> who asks it

    def tell(self, cell: str, sign: Sign) -> None:
        """A sign of life of the worker that has ``cell``."""
        self._news[cell] = sign

    def news(self) -> dict[str, Sign]:
        """What came since the last call."""
        news, self._news = self._news, {}
        return news

    def read(self, path: str, offset: int) -> bytes:
        """Up to `CHUNK` bytes of a file of this machine."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(CHUNK)

    def begin(self, cell: str, attempt: int) -> list[Entry]:
        """The files that there are of ``cell``; those that another attempt was about to hand in are gone."""
        for partial in self._run.path.glob(f"cells/.{cell}.*.adopted"):
            shutil.rmtree(partial)
        arrival(self._run, cell, attempt).mkdir(parents=True)
        return entries(self._run.cell(cell).path)

    def write(self, cell: str, attempt: int, entry: Entry, offset: int, chunk: bytes) -> None:
        """A part of a file that an attempt hands in; the last one when the file has its size."""
        path = arrival(self._run, cell, attempt) / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if offset else "wb") as file:
            file.write(chunk)
            if file.tell() == entry.size:
                file.flush()
                os.fsync(file.fileno())
        if offset + len(chunk) == entry.size:
            os.utime(path, ns=(entry.changed, entry.changed))

    def read_lines(self, name: str, start: int) -> bytes:
        """As `Keeper.read`, of the judges' journal ``name``."""
        return read_lines(self._run.judging / name, start)

    def append(self, name: str, line: bytes, at: int | None) -> bool:
        """As `Keeper.append`."""
        with appending(self._run.judging / name) as file:
            if at is not None and file.seek(0, os.SEEK_END) != at:
                return False
            file.write(line)
        return True

    def take(self, key: str, owner: Owner) -> bool:
        """As `Keeper.take`, for the worker that has the cell ``owner``."""
        return self._asked.setdefault(key, owner) == owner

    def release(self, key: str | None, owner: Owner) -> None:
        """As `Keeper.release`."""
        gone = [one for one, other in self._asked.items() if other == owner and key in (None, one)]
        for one in gone:
            del self._asked[one]


def arrival(run: RunFolder, cell: str, attempt: int) -> Path:
    """The folder beside a cell's that an attempt hands its files in to; its name is one of those that are swept."""
    return run.path / "cells" / f".{cell}.{attempt}.adopted"


def entries(cell: Path) -> list[Entry]:
    """The files in the folder of a cell."""
    found = sorted(path for path in cell.rglob("*") if path.is_file())
    return [Entry(path.relative_to(cell).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def admit(run: RunFolder, cell: str, attempt: int) -> None:
    """Put what an attempt handed in, which is the whole cell, in the place of what there was of it."""
    home, before = run.cell(cell).path, run.path / "cells" / f".{cell}.before.adopted"
    if home.exists():
        home.rename(before)
    arrival(run, cell, attempt).rename(home)
    shutil.rmtree(before, ignore_errors=True)
