"""Whether a file of the data folder is what it should be: as tested, as fetched, changed, of unknown content, missing.

What was fetched is kept in <data folder>/fetched.json: {path: {sha256, size, url, date}}. A file whose address may
serve another content than the one this project was tested with is thereby pinned to what the first fetch brought.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.data.catalogue import DataFile, external_files
from harness.files import content_hash, read_text, write_text

Status = Literal["ok", "pinned", "unknown", "differs", "missing"]


@dataclass(frozen=True)
class State:
    """``status`` of a file and, in ``detail``, what there is to say about it."""

    file: DataFile
    status: Status
    detail: str = ""

    @property
    def there(self) -> bool:
        return self.status in ("ok", "pinned", "unknown")


def state(folder: Path, file: DataFile) -> State:
    """Compare the file (or folder) at its place in ``folder`` with what is known of it; reads all of it."""
    path = folder / file.path
    if not path.exists():
        return State(file, "missing", "" if file.url else f"no address to fetch it from: {file.note}")
    found = digest(path)
    if found == file.sha256:
        return State(file, "ok", "as tested")
    pinned = fetched(folder).get(file.path)
    if pinned is not None and found == pinned["sha256"]:
        other = "" if file.sha256 is None else ", another content than the one tested"
        return State(file, "pinned", f"as fetched on {pinned['date'][:10]}{other}")
    if pinned is None and not file.exact:
        other = "its sha256 is not known" if file.sha256 is None else "another content than the one tested"
        return State(file, "unknown", f"{other} (here: {found})")
    expected = pinned["sha256"] if pinned is not None else file.sha256
    return State(file, "differs", f"sha256 is {found}, expected {expected}; remove it and fetch it again")


def digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files."""
    if path.is_dir():
        return content_hash(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def fetched(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of fetched.json; ValueError when it is damaged."""
    path = folder / "fetched.json"
    if not path.is_file():
        return {}
    try:
        rows = json.loads(read_text(path, "record of fetched files"))
        if not all(isinstance(row, dict) and {"sha256", "date"} <= row.keys() for row in rows.values()):
            raise ValueError("not a record of fetched files")
    except (ValueError, AttributeError) as problem:
        raise ValueError(f"{path}: {problem}; remove it to do without the record") from None
    return rows


def pin(folder: Path, file: DataFile, date: str) -> None:
    """Record what was just fetched."""
    path = folder / file.path
    row = {"sha256": digest(path), "size": size(path), "url": file.url, "date": date}
    write_text(folder / "fetched.json", json.dumps({**fetched(folder), file.path: row}, indent=2) + "\n")


def missing(folder: Path) -> dict[str, list[str]]:
    """Benchmark -> the files that it needs and that are not in ``folder``; what is there is not read."""
    absent = [file for file in external_files() if file.needed and not (folder / file.path).exists()]
    names = dict.fromkeys(name for file in absent for name in file.benchmarks)
    return {name: [file.path for file in absent if name in file.benchmarks] for name in names}
