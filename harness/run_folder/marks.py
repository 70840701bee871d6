"""What is known of a file that was finished: size, time and content, so that a later change is noticed."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

from harness.files import Document

LARGE = 16 * 2**20
"""Bytes from which on a file's content is looked at only when its time differs, or when asked for."""


_UNMARKED = re.compile(
    r"^(cell|files|identity)\.json$|^(log|traceback)\.txt$|^(fitting|judging)/|\.partial(/|$)|(^|/)\."
)
"""What a manifest leaves out: cell.json and itself, logs, checkpoints, what is not finished, and of the folder of an
`eval` what it is of and what its judge keeps."""


class Mark(Document):
    """``changed`` is the file's time of change in nanoseconds, ``blake2b`` the hash (16 bytes, hex) of its content."""

    size: int
    changed: int
    blake2b: str

    @classmethod
    def of(cls, path: Path) -> "Mark":
        """That of a file as it is now."""
        stat = path.stat()
        return cls(size=stat.st_size, changed=stat.st_mtime_ns, blake2b=_hash(path, stat.st_size))

    def is_fresh(self, path: Path) -> bool:
        """Whether size and time of the file are those of the mark."""
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.changed)

    def difference(self, path: Path, *, thorough: bool, grows: bool = False) -> str | None:
        """How the file differs from its mark: "is missing", ...; None where it does not.

        Large files whose size and time are the same are read only if ``thorough``. One that ``grows`` may be longer.
        """
        if not path.is_file():
            return "is missing"
        try:
            stat = path.stat()
            if stat.st_size < self.size or (stat.st_size > self.size and not grows):
                return f"has {stat.st_size} bytes and had {self.size}"
            same_time = stat.st_mtime_ns == self.changed
            if same_time and stat.st_size >= LARGE and not thorough:
                return None
            found = _hash(path, self.size) if thorough else _hash_once(path, self.size, stat.st_mtime_ns)
        except FileNotFoundError:  # another process has just taken it away
            return "is missing"
        return None if found == self.blake2b else "was changed"


class Marks(Document):
    """The content of files.json: marks by the files' names relative to the cell."""

    sealed: ClassVar[bool] = True
    files: dict[str, Mark]


class Manifest:
    """files.json in a cell's ``folder``, which says what the files of all that is over in it were: of the fit, and of
    each benchmark. So what is lost of an unfinished cell is noticed, too. One process at a time may write."""

    NAME: ClassVar[str] = "files.json"

    def __init__(self, folder: Path) -> None:
        self._folder, self.path = folder, folder / self.NAME

    @property
    def marks(self) -> dict[str, Mark]:
        """None (an empty dict) where there is no such file; ValueError when it is damaged."""
        return Marks.read(self.path).files if self.path.is_file() else {}

    def write(self, marks: Mapping[str, Mark]) -> None:
        """Replace the marks."""
        Marks(files=dict(marks)).write(self.path)

    def seal(self) -> dict[str, Mark]:
        """Mark all files as they are now, but for those of `_UNMARKED`; the marks of files whose size and time are as
        they were stay, without their being read."""
        found = (path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file())
        names, known = [name for name in found if not _UNMARKED.search(name)], self.marks
        same = {name: known[name] for name in names if name in known and known[name].is_fresh(self._folder / name)}
        marks = same | marks_of(self._folder, [name for name in names if name not in same])
        self.write(marks := dict(sorted(marks.items())))
        return marks

    def drop(self, *places: str) -> None:
        """Forget the marks of ``places``, of what is below them, and of files that are gone: they are made again."""
        before = self.marks
        gone = [*places, *(name for name in before if not (self._folder / name).is_file())]
        marks = {name: mark for name, mark in before.items() if not any(_is_at(name, place) for place in gone)}
        if marks != before:
            self.write(marks)

    def differences(self, *, thorough: bool) -> dict[str, str]:
        """Name -> how a marked file differs from its mark; answers may have grown since."""
        try:
            marks = self.marks
        except ValueError as problem:
            return {self.NAME: str(problem)}
        answers = [name for name in marks if name.startswith("answers/")]
        return differences(self._folder, marks, thorough=thorough, growing=answers)


def _is_at(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}/")


def marks_of(folder: Path, names: Iterable[str]) -> dict[str, Mark]:
    """Those of the files ``names`` (relative to ``folder``), by name."""
    return {name: Mark.of(folder / name) for name in sorted(names)}


def differences(
    folder: Path, marks: Mapping[str, Mark], *, thorough: bool, growing: Iterable[str] = ()
) -> dict[str, str]:
    """Name -> how the file differs, of the files in ``folder`` that do; those ``growing`` may be longer."""
    grows = set(growing)
    found = {
        name: mark.difference(folder / name, thorough=thorough, grows=name in grows) for name, mark in marks.items()
    }
    return {name: how for name, how in found.items() if how is not None}


def _hash(path: Path, size: int) -> str:
    """Of the first ``size`` bytes."""
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            hashed.update(block)
            size -= len(block)
    return hashed.hexdigest()


@cache
def _hash_once(path: Path, size: int, changed: int) -> str:
    """The same, read once in a process for each time of change."""
    return _hash(path, size)
