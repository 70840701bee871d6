"""Who runs which cell of a run that several processes work at: files in RUN/claims, good for any shared file system.

claims/takers/<taker>.json   a process at work, on whatever host: it touches the file every `BEAT_SECONDS`
claims/cells/<cell>.<number> names the taker of the cell; of several numbers the highest counts

A file of either kind is made once, by a create that fails where there is one, and taken away only when nobody is at
work any more. A cell is free when it has no claim, or when the taker of its highest one is gone: its file is not there
(it went home), its process has ended (of a taker of the same host), or it was silent for `EXPIRE_SECONDS`. Then the
next number is claimed, which of several processes one alone can do. Silence is counted by the clock of whoever looks,
from its first look on and no more than two beats for each look, so hosts need not agree on the time, and a file server
that stops for all looks like nobody's death. A process that finds itself taken for dead ends at once.
"""

import os
import shutil
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil

from harness.files import Document

FOLDER = "claims"
BEAT_SECONDS = 10.0
EXPIRE_SECONDS = 180.0
LINGER_SECONDS = 2.0
"""For so long a process of this host that has ended counts as there: its own workers end a moment later."""


class Taker(Document):
    """A process at work: ``space`` tells apart what process ids are unique in (hosts, boots, containers), ``started``
    is when the process began (seconds since 1970), ``share`` which cells it is for, as its user said."""

    name: str
    host: str
    space: str
    pid: int
    started: float
    share: str
    since: str

    @classmethod
    def me(cls, share: str) -> "Taker":
        """This process."""
        return cls(
            name=uuid.uuid4().hex[:12],
            host=socket.gethostname(),
            space=_space(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            share=share,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def label(self) -> str:
        """``node7:4711 (--shard 2/8)``."""
        return f"{self.host}:{self.pid}" + (f" ({self.share})" if self.share else "")

    @property
    def has_ended(self) -> bool:
        """Whether there is no such process any more in this process's own `space`."""
        try:
            process = psutil.Process(self.pid)
            # The time is computed from the clock, which may have been set since; ids are not used again that soon.
            return abs(process.create_time() - self.started) > 2 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


@dataclass
class _Watch:
    """How long a file was left untouched, as far as this process saw."""

    touched: int
    looked: float
    silent: float = 0.0
    ended: float | None = None  # when its process was first found to have ended


class Claims:
    """The claims of the run in ``run``. Cells can be taken between `enter` and `leave`, both done while the run folder
    is locked, in as many processes as there are."""

    def __init__(self, run: Path) -> None:
        self._takers, self._cells = run / FOLDER / "takers", run / FOLDER / "cells"
        self._me: Taker | None = None
        self._held: dict[str, int] = {}
        self._known: dict[str, Taker] = {}
        self._watched: dict[Path, _Watch] = {}
        self._guard, self._stop = threading.RLock(), threading.Event()

    def enter(self, share: str) -> None:
        """Be a taker, which shows that it lives until `leave`; ``share`` is as in `Taker`."""
        self._me, self._stop = Taker.me(share), threading.Event()
        self._cells.mkdir(parents=True, exist_ok=True)
        self._takers.mkdir(exist_ok=True)
        self._me.write(self._file(self._me.name))
        threading.Thread(target=self._live, args=(self._me, self._stop), name="dspa-bench claims", daemon=True).start()

    def leave(self) -> bool:
        """Be one no more: what was taken and is not over is free. Whether this process was one."""
        self._stop.set()
        with self._guard:
            me, self._me = self._me, None
            self._held.clear()
        if me is not None:
            self._file(me.name).unlink(missing_ok=True)
        return me is not None

    def clear(self) -> None:
        """Remove all claims; for when the folder is locked and nobody is at work."""
        shutil.rmtree(self._cells.parent, ignore_errors=True)

    def take(self, cell: str) -> bool:
        """Whether ``cell`` is this process's from now on; False while another one's that lives."""
        assert self._me is not None
        number = 0
        while True:
            try:
                handle = os.open(self._claim(cell, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                if self._is_held(self._claim(cell, number)):
                    return False
                number += 1
                continue
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(self._me.name)
            with self._guard:
                self._held[cell] = number
            return True

    def over(self, cell: str) -> None:
        """``cell`` came to its end, so that nobody can take it away."""
        with self._guard:
            self._held.pop(cell, None)

    def holder(self, cell: str) -> str | None:
        """The `Taker.label` of the living taker of ``cell``; None where it is free."""
        number = 0
        while self._claim(cell, number + 1).exists():
            number += 1
        claim = self._claim(cell, number)
        if not self._is_held(claim):
            return None
        taker = self._taker(_text(claim) or "")
        return taker.label if taker is not None else "a process that is just starting"

    def others(self) -> list[Taker]:
        """The living takers but for this process; those of this host without those that have just ended."""
        names = [path.stem for path in sorted(self._takers.glob("[!.]*.json"))]
        found = [self._taker(name) for name in names if self._me is None or name != self._me.name]
        return [taker for taker in found if taker is not None and self._lives(taker, linger=0.0)]

    def _file(self, taker: str) -> Path:
        return self._takers / f"{taker}.json"

    def _claim(self, cell: str, number: int) -> Path:
        return self._cells / f"{cell}.{number}"

    def _taker(self, name: str) -> Taker | None:
        """The taker called ``name`` while it has its file."""
        path = self._file(name)
        if name not in self._known and path.is_file():
            with suppress(ValueError):  # it went home in between
                self._known[name] = Taker.read(path)
        return self._known.get(name) if path.is_file() else None

    def _is_held(self, claim: Path) -> bool:
        """Whether the taker that the file ``claim`` names lives."""
        name = _text(claim)
        if name == "":  # it is just being written, or its writer died in the middle
            return self._silence(claim) < EXPIRE_SECONDS
        taker = self._taker(name) if name else None
        return taker is not None and self._lives(taker)

    def _lives(self, taker: Taker, linger: float = LINGER_SECONDS) -> bool:
        path = self._file(taker.name)
        if taker.space != _space():
            return self._silence(path) < EXPIRE_SECONDS
        if not taker.has_ended:
            return True
        with self._guard:
            self._silence(path)
            watch = self._watched.get(path)
            if watch is None:
                return False
            if watch.ended is None:
                watch.ended = time.monotonic()
            return time.monotonic() - watch.ended < linger

    def _silence(self, path: Path) -> float:
        """Seconds for which the file was seen untouched; infinite for one that is gone."""
        try:
            # Opened, because a network file system shows the time that it has in mind until then.
            with path.open("rb") as file:
                touched = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return float("inf")
        now = time.monotonic()
        with self._guard:
            watch = self._watched.get(path)
            if watch is None or watch.touched != touched:
                self._watched[path] = watch = _Watch(touched, now)
            watch.silent += min(now - watch.looked, 2 * BEAT_SECONDS)
            watch.looked = now
            return watch.silent

    def _live(self, me: Taker, stop: threading.Event) -> None:
        """Show that this process lives, look whether others do, and end it where it was taken for dead."""
        while not stop.wait(BEAT_SECONDS):
            with self._guard:
                held = dict(self._held)
            lost = [cell for cell, number in held.items() if self._claim(cell, number + 1).exists()]
            try:
                if not lost:
                    os.utime(self._file(me.name))
            except FileNotFoundError:
                lost = lost or [*held] or ["its cells"]
            except OSError:  # a file server that is away for a while
                continue
            if lost and not stop.is_set():
                _end(lost)
            self.others()


def _end(lost: list[str]) -> None:
    """End this process without touching anything: what it would tidy up is somebody else's now."""
    said = f"error: this process gave no sign of life for {EXPIRE_SECONDS:g} seconds, and others took {', '.join(lost)}"
    print(f"{said}; it ends here, and the same command goes on", file=sys.__stderr__, flush=True)
    os._exit(1)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None


@cache
def _space() -> str:
    host = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{host}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{host}/{psutil.boot_time():.0f}"
