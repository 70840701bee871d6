"""What is known of a file that was finished: size, time and content, so that a later change is noticed."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from harness.files import Document

LARGE = 16 * 2**20
"""Bytes from which on a file's content is looked at only when its time differs, or when asked for."""


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

    def difference(self, path: Path, *, thorough: bool, grows: bool = False) -> str | None:
        """How the file differs from its mark: "is missing", ...; None where it does not.

        Large files whose size and time are the same are read only if ``thorough``. One that ``grows`` may be longer.
        """
        if not path.is_file():
            return "is missing"
        stat = path.stat()
        if stat.st_size < self.size or (stat.st_size > self.size and not grows):
            return f"has {stat.st_size} bytes and had {self.size}"
        same_time = stat.st_mtime_ns == self.changed
        if same_time and stat.st_size >= LARGE and not thorough:
            return None
        found = _hash(path, self.size) if thorough else _hash_once(path, self.size, stat.st_mtime_ns)
        return None if found == self.blake2b else "was changed"


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
