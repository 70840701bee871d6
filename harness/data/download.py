"""One file over HTTP: goes on where an interrupted download stopped, and appears only when it is whole."""

import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness.files import write_text

ATTEMPTS = 4
CHUNK = 1 << 16
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""
Progress = Callable[[int, int | None], object]
"""Told (bytes there, bytes in all or None when the server does not say) as a download goes along."""


class DownloadError(Exception):
    """Why a file could not be downloaded, and what to do."""


class _LostError(Exception):
    """The connection failed in a way that a new attempt may mend."""


def part_path(target: Path) -> Path:
    """Where the bytes of ``target`` are kept until it is whole."""
    return target.with_name(f".{target.name}.part")


def download(url: str, target: Path, *, progress: Progress = lambda *_: None, pause: float = 1.0) -> Path:
    """Bring ``url`` to `part_path` of ``target`` and return that path; the caller checks and renames it.

    An earlier part is continued when the server says that the file is still the same (its ETag or date), and begun
    anew otherwise. A lost connection, 429 and 5xx are tried again, after ``pause``, twice that, and so on (seconds).
    Raises DownloadError; what was received stays for the next time, unless the address itself is refused.
    """
    part = part_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            try:
                _receive(url, part, progress)
                return part
            except _LostError as problem:
                reason = str(problem)
    except OSError as problem:
        kept = part.stat().st_size if part.is_file() else 0
        raise DownloadError(f"cannot write {problem.filename or part}: {problem.strerror}{_kept(kept)}") from None
    raise DownloadError(f"{url}: {reason}, {ATTEMPTS} times{_kept(part.stat().st_size if part.is_file() else 0)}")


def discard(target: Path) -> None:
    """Remove the part of ``target`` and what is remembered of it."""
    for path in (part_path(target), _memory(part_path(target))):
        with suppress(FileNotFoundError):
            path.unlink()


def _receive(url: str, part: Path, progress: Progress) -> None:
    there, same = _resumable(url, part)
    headers = {"User-Agent": "dspa-bench", "Accept-Encoding": "identity"}
    if there:
        headers |= {"Range": f"bytes={there}-", "If-Range": same}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as problem:
        with problem:
            _refused(url, problem, part)
        return
    except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:
        reason = getattr(problem, "reason", problem)
        if isinstance(reason, socket.gaierror):
            host = urllib.parse.urlsplit(url).hostname
            raise DownloadError(
                f"{url}: no address is known for {host} ({reason.strerror}); is there a network?"
            ) from None
        raise _LostError(f"cannot be reached ({reason})") from None
    with response:
        start = there if response.status == 206 else 0
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise _LostError("the server went on from another place than it was asked to")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        same = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if not start:  # old bytes must never be taken for a beginning of what is remembered next
            part.unlink(missing_ok=True)
        write_text(_memory(part), json.dumps({"url": url, "same": same if not same.startswith("W/") else ""}) + "\n")
        with part.open("ab" if start else "wb") as file:
            have = _copy(response, file, start, total, progress)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have != total:
        raise _LostError(f"the connection ended after {have:,} of {total:,} bytes")


def _copy(response, file, have: int, total: int | None, progress: Progress) -> int:
    progress(have, total)
    while True:
        try:
            chunk = response.read(CHUNK)
        except (http.client.HTTPException, OSError) as problem:
            file.flush()
            raise _LostError(f"the connection was lost after {have:,} bytes ({problem})") from None
        if not chunk:
            return have
        file.write(chunk)
        have += len(chunk)
        progress(have, total)


def _refused(url: str, problem: urllib.error.HTTPError, part: Path) -> None:
    if problem.code == 416:  # the part is not a beginning of what is there now
        part.unlink(missing_ok=True)
        raise _LostError("the part that was there could not be continued")
    if problem.code == 429 or problem.code >= 500:
        raise _LostError(f"the server answered {problem.code} {problem.reason}")
    raise DownloadError(
        f"{url}: the server answered {problem.code} {problem.reason}; the address may have changed: "
        "get the file by hand and put it in its place"
    )


def _memory(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """(bytes to go on from, what the server must confirm with); (0, "") to begin anew."""
    try:
        memory = json.loads(_memory(part).read_text(encoding="utf-8"))
        there = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    return (there, memory["same"]) if memory.get("url") == url and memory.get("same") else (0, "")


def _kept(size: int) -> str:
    return f"; {size:,} bytes are kept, and the same command goes on from there" if size else ""
