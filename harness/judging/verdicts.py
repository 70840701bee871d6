"""What judge models said, kept on disk so that no verdict is asked for (and paid for) twice.

A `Journal` is a file of JSON lines that several processes append to and read; `Replies` is the one of all replies. On
a machine that does not see the folder they are in, a `Keeper` stands for it.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from harness.data.triples import Conversation
from harness.seals import read_line, sealed_line

Row = dict[str, Any]


class Keeper(Protocol):
    """A folder of journals and claims that is on another machine, as far as one process there may have it."""

    def read(self, name: str, start: int) -> bytes:
        """The whole lines of the journal ``name`` from byte ``start`` on."""
        ...

    def append(self, name: str, line: bytes, at: int | None) -> bool:
        """Add a line; with ``at`` only where the journal ends at that byte, else False."""
        ...

    def take(self, key: str) -> bool:
        """As `Claims.take`."""
        ...

    def release(self, key: str | None) -> None:
        """As `Claims.release`; None: all that this process holds."""
        ...


_elsewhere: dict[Path, Keeper] = {}


def keep_elsewhere(folder: Path, keeper: Keeper) -> None:
    """From now on journals and claims of ``folder`` are what ``keeper`` has, and not files of this machine."""
    _elsewhere[folder] = keeper


class Journal:
    """The file ``path``; what is appended is on disk before `append` returns, whoever is killed afterwards.

    ``mend`` is what a user can do about a damaged line; None: such lines are passed over.
    """

    def __init__(self, path: Path, mend: str | None = "remove this line") -> None:
        self.path, self._mend = path, mend
        self._read_up_to, self._lines = 0, 0
        self._keeper = _elsewhere.get(path.parent)

    def append(self, row: Mapping[str, Any], check: Callable[[list[Row]], None] | None = None) -> None:
        """Add one line, in ASCII.

        ``check`` gets the `news` before, while no other process can add any; what it raises prevents the line.
        """
        line = sealed_line(row)
        if self._keeper is not None:
            while True:
                if check is not None:
                    check(self.news())
                if self._keeper.append(self.path.name, line, self._read_up_to if check is not None else None):
                    return
        with appending(self.path) as file:
            if check is not None:
                check(self._rows(_lines_from(file, self._read_up_to)))
            file.write(line)

    def news(self) -> list[Row]:
        """The rows that were added since the last call, this object's own included; none without a file.

        Raises ValueError (file:line) for a line that is no JSON object, or another than was written.
        """
        if self._keeper is not None:
            return self._rows(self._keeper.read(self.path.name, self._read_up_to))
        return self._rows(read_lines(self.path, self._read_up_to))

    def _rows(self, whole: bytes) -> list[Row]:
        if not whole:
            return []
        rows = []
        for number, line in enumerate(whole.split(b"\n")[:-1], self._lines + 1):
            try:
                row = read_line(line)
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
                rows.append(row)
            except ValueError as problem:
                if self._mend is not None:
                    raise ValueError(f"{self.path}:{number}: damaged ({problem}); {self._mend}") from None
        self._read_up_to += len(whole)
        self._lines += whole.count(b"\n")
        return rows


def read_lines(path: Path, start: int) -> bytes:
    """The whole lines of a journal from byte ``start`` on; none without a file."""
    try:
        with path.open("rb") as file:
            return _lines_from(file, start)
    except FileNotFoundError:
        return b""


def _lines_from(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    content = file.read()
    return content[: content.rfind(b"\n") + 1]


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """The journal at ``path`` to add whole lines to, while no other process can; they are on disk after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_torn_end(file)
        yield file
        file.flush()
        os.fsync(file.fileno())


def _cut_torn_end(file: BinaryIO) -> None:
    """Remove what a process that was killed while writing left after the last whole line."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def reply_key(identity: Mapping[str, Any], asked: Conversation) -> str:
    """sha256 of who was asked (all settings a reply depends on) and everything that was sent."""
    return hashlib.sha256(json.dumps([identity, asked], sort_keys=True).encode()).hexdigest()


class Replies:
    """replies.jsonl in ``folder``, shared by all processes: key, judge, text, one line as each reply comes."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / "replies.jsonl", mend=None)  # what is damaged is asked again
        self._claims = folder / "claims.lock"
        self._texts: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """The text kept under ``key``, as of the last `refresh`."""
        return self._texts.get(key)

    def refresh(self) -> None:
        """Read what other processes added."""
        self._texts |= {row["key"]: row["text"] for row in self._journal.news() if {"key", "text"} <= row.keys()}

    def keep(self, key: str, judge: str, text: str) -> None:
        """Add a reply; it is on disk when this returns."""
        self._journal.append({"key": key, "judge": judge, "text": text})
        self._texts[key] = text

    @contextmanager
    def claims(self) -> Iterator["Claims | Keeper"]:
        """For a batch of questions: processes agree who asks which, so that two never pay for the same."""
        if (keeper := _elsewhere.get(self._claims.parent)) is not None:
            try:
                yield keeper
            finally:
                keeper.release(None)
            return
        self._claims.parent.mkdir(parents=True, exist_ok=True)
        with self._claims.open("a+b") as file:
            yield Claims(file)


@dataclass
class Claims:
    """One lock byte of a file for each question; the system frees those of a process that dies.

    Record locks belong to a process, so they hold off other processes only.
    """

    file: BinaryIO

    def take(self, key: str) -> bool:
        """Whether this process now holds the question; False while another one does."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, key: str) -> None:
        """Let others have it."""
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, int(key[:15], 16))
