"""JSON lines that several processes append to and read; a line is there whole or not at all."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

Row = dict[str, Any]


class Journal:
    """The file ``path``; what is appended is on disk before `append` returns, whoever is killed afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_up_to, self._lines = 0, 0

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line, in ASCII."""
        with self.locked() as file:
            self.append_to(file, row)

    def news(self) -> list[Row]:
        """The rows that were added since the last call, this object's own included; none without a file.

        Raises ValueError (file:line) for a line that is no JSON object.
        """
        try:
            with self.path.open("rb") as file:
                return self.news_in(file)
        except FileNotFoundError:
            return []

    @contextmanager
    def locked(self) -> Iterator[BinaryIO]:
        """The open file while no other process can add to it; for `append_to` and `news_in`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def append_to(self, file: BinaryIO, row: Mapping[str, Any]) -> None:
        """As `append`, within `locked`."""
        _cut_torn_end(file)
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())

    def news_in(self, file: BinaryIO) -> list[Row]:
        """As `news`, within `locked`."""
        file.seek(self._read_up_to)
        whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        rows = []
        for number, line in enumerate(whole.split(b"\n"), self._lines + 1):
            try:
                row = json.loads(line)
            except ValueError as problem:
                raise ValueError(f"{self.path}:{number}: not valid JSON ({problem}); remove this line") from None
            if not isinstance(row, dict):
                raise ValueError(f"{self.path}:{number}: expected a JSON object; remove this line")
            rows.append(row)
        self._read_up_to += len(whole) + 1
        self._lines += len(rows)
        return rows


def _cut_torn_end(file: BinaryIO) -> None:
    """Remove what a process that was killed while writing left after the last whole line."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
