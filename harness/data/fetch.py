"""Fetch one file of the catalogue into the data folder: download, check, unpack, put in its place, record."""

from datetime import UTC, datetime
from pathlib import Path

from harness.data.catalogue import DataFile
from harness.data.download import DownloadError, Progress, discard, download
from harness.data.state import State, digest, pin, state
from harness.data.unpack import unpack


def fetch(folder: Path, file: DataFile, *, progress: Progress = lambda *_: None, pause: float = 1.0) -> State:
    """Bring ``file`` to its place in ``folder`` and return its state; one that is there already is left alone.

    Raises DownloadError when it cannot be fetched, is not what it should be (``exact``), or what is there differs from
    what it should be. Nothing half-fetched ever lies at its place.
    """
    before = state(folder, file)
    if before.there:
        return before
    if before.status == "differs":
        raise DownloadError(f"{folder / file.path}: {before.detail}")
    if file.url is None:
        raise DownloadError(f"{file.path} has no address to fetch it from: {file.note}")
    target = folder / file.path
    part = download(file.url, target, progress=progress, pause=pause)
    if file.exact and digest(part) != file.sha256:
        found = digest(part)
        discard(target)
        raise DownloadError(
            f"{file.url} serves another content: sha256 {found}, expected {file.sha256}; nothing was kept. "
            "If you trust it, get it by hand and put it in its place"
        )
    try:
        if file.unpack is None:
            part.replace(target)
        else:
            unpack(file.unpack, part, target)
        discard(target)
        pin(folder, file, datetime.now(UTC).isoformat(timespec="seconds"))
    except ValueError as problem:
        discard(target)
        raise DownloadError(f"{file.url}: {problem}") from None
    except OSError as problem:
        raise DownloadError(f"cannot write {problem.filename or target}: {problem.strerror}") from None
    return state(folder, file)
