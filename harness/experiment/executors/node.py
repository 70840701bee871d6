"""What runs on the nodes of a Ray cluster: the look at a node beforehand, and the body of a cell's task."""

import faulthandler
import fcntl
import os
import platform
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from tqdm import tqdm

from harness.data.external import DATA_VARIABLE
from harness.experiment.executors.cargo import CHUNK, Item, Mirror
from harness.experiment.executors.desk import Entry, Owner, Place, Sign, entries
from harness.experiment.executors.worker import BEAT_SECONDS, all_output_to, cell_log
from harness.judging.verdicts import Replies, keep_elsewhere
from harness.provenance import git_state, package_versions
from harness.pulse import heard_by
from harness.run_folder.layout import RunFolder
from harness.seals import digest

if TYPE_CHECKING:
    from harness.experiment.cell import CellContext

CANARY = "f" * 64
"""The question that the driver holds as if it asked it, by which a node sees whether locks hold between machines."""


@dataclass(frozen=True)
class Job:
    """What all cells of one sitting have in common.

    ``plan`` is the digest of the plan in the run folder ``folder``, ``environment`` are variables of the driver,
    ``python_path`` its sys.path, ``versions`` those of its code and packages. ``paid``: a judge asks for money.
    ``cargo`` are the files to bring to nodes that do not see them, None where nodes see the folder.
    """

    folder: str
    plan: str
    threads: int
    environment: dict[str, str]
    python_path: tuple[str, ...]
    versions: dict[str, str | None]
    paid: bool
    cargo: tuple[Item, ...] | None


def versions() -> dict[str, str | None]:
    """Of the code (whatever was changed since its commit) and of all that results may depend on."""
    commit = (git_state() or {}).get("commit")
    return {"Python": platform.python_version(), "commit": commit, **package_versions()}


def plan_digest(folder: Path) -> str:
    """Of the plan in a run folder; "" where there is none."""
    path = folder / "plan.json"
    return digest(path.read_bytes()) if path.is_file() else ""


def look(job: Job) -> str | None:
    """Why this node cannot do the cells of ``job``; None where it can."""
    host, mine, folder = _here().host, versions(), Path(job.folder)
    if mine != job.versions:
        names = [name for name in {**job.versions, **mine} if job.versions.get(name) != mine.get(name)]
        shown = ", ".join(f"{name} {mine.get(name)} (here {job.versions.get(name)})" for name in names[:5])
        return f"Ray node {host} has {shown}: its results could differ; install the same on all nodes"
    if job.cargo is not None:
        return None
    if plan_digest(folder) != job.plan:
        return (
            f"Ray node {host} does not see the run folder {job.folder!r}: put it, and what the suite names, on a file "
            "system that all nodes share, or set execution.shared_folder=false, which sends files to the nodes"
        )
    if job.paid and not _locks_hold(RunFolder(folder).judging):
        return (
            f"Ray node {host} does not see the locks that this machine holds in {job.folder!r}, so verdicts could be "
            "paid for twice and a cap be exceeded: mount it with locks, or set execution.shared_folder=false"
        )
    return None


def work(job: Job, cell: str, attempt: int, hung: str | None, lost: tuple[str, ...], desk: Any) -> None:
    """Bring ``cell`` to its end in this process, which is in a task of Ray and may have had other cells before.

    ValueError where the node cannot (see `look`). ``desk`` is the actor `Desk`.
    """
    place = _here()
    reporter = _Reporter(desk, cell, Sign(attempt, place))
    ray.get(reporter.send())  # where it is must be known, whatever becomes of it
    process = _Process.of(job, desk)
    folder = RunFolder(process.folder).cell(cell)
    if process.mirror is not None:
        process.lay_out(cell, attempt)
    with cell_log(folder) as log, all_output_to(log), heard_by(reporter.alive):
        from harness.experiment.cell import run_cell

        with suppress(OSError):  # a file system without locks
            # A worker that a killed driver left behind ends soon, but may not have yet; the system frees its lock.
            fcntl.flock(log, fcntl.LOCK_EX)
        run_cell(process.context, process.context.cells[cell], reporter.stage, hung, place.host, lost)
    if process.mirror is not None:
        process.hand_in(cell, attempt)


class _Process:
    """What this process has set up for its sitting; Ray gives each sitting processes of its own.

    ``folder`` is the run's, as this process sees it: with a ``mirror`` it lies in there.
    """

    _the: "_Process | None" = None

    @classmethod
    def of(cls, job: Job, desk: Any) -> "_Process":
        if cls._the is None:
            if (reason := look(job)) is not None:
                raise ValueError(reason)
            cls._the = cls(job, desk)
        return cls._the

    def __init__(self, job: Job, desk: Any) -> None:
        self._desk, self._there = desk, RunFolder(job.folder)
        self.folder, self.mirror = Path(job.folder), None
        environment, python_path = job.environment, job.python_path
        if job.cargo is not None:
            self.mirror = mirror = Mirror()
            mirror.bring(job.cargo, self._read)
            self.folder = mirror.of(job.folder)
            self._keeper = _DeskKeeper(desk)
            keep_elsewhere(RunFolder(self.folder).judging, self._keeper)
            data = {DATA_VARIABLE: str(mirror.of(environment[DATA_VARIABLE]))}
            # Variables that name places (caches) are another on each machine.
            environment = {n: v for n, v in environment.items() if not v.startswith(("/", "~", "."))} | data
            python_path += tuple(str(mirror.of(entry)) for entry in python_path if entry.startswith("/"))
        os.environ.update(environment)
        sys.path += [entry for entry in python_path if entry not in sys.path]
        # tqdm's own lock is a named semaphore, which a killed worker would leave to Python's resource tracker.
        tqdm.set_lock(threading.RLock())
        faulthandler.register(signal.SIGUSR1, file=2)  # by which the driver asks where a hung worker is
        import torch

        torch.set_num_threads(job.threads)

    @cached_property
    def context(self) -> "CellContext":
        """Base model and triples are read once in a process."""
        from harness.experiment.cell import CellContext

        return CellContext.open(self.folder)

    def lay_out(self, cell: str, attempt: int) -> None:
        """Make this machine's folder of ``cell`` what the driver has of it."""
        self._keeper.owner = cell, attempt
        here, there = RunFolder(self.folder).cell(cell).path, self._there.cell(cell).path
        shutil.rmtree(here, ignore_errors=True)
        found: list[Entry] = ray.get(self._desk.begin.remote(cell, attempt))
        for entry in found:
            path = here / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while file.tell() < entry.size and (chunk := self._read(str(there / entry.name), file.tell())):
                    file.write(chunk)
            os.utime(path, ns=(entry.changed, entry.changed))

    def hand_in(self, cell: str, attempt: int) -> None:
        """Send all of the cell to the driver, which puts it into its place when the task is over."""
        here = RunFolder(self.folder).cell(cell).path
        for entry in entries(here):
            with (here / entry.name).open("rb") as file:
                for offset in range(0, max(entry.size, 1), CHUNK):
                    ray.get(self._desk.write.remote(cell, attempt, entry, offset, file.read(CHUNK)))
        shutil.rmtree(here)

    def _read(self, path: str, offset: int) -> bytes:
        return ray.get(self._desk.read.remote(path, offset))


class _DeskKeeper:
    """The judges' folder as the desk has it (`harness.judging.verdicts.Keeper`); ``owner`` is who asks."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self.owner: Owner = ("", 0)

    def read(self, name: str, start: int) -> bytes:
        return ray.get(self._desk.read_lines.remote(name, start))

    def append(self, name: str, line: bytes, at: int | None) -> bool:
        return ray.get(self._desk.append.remote(name, line, at))

    def take(self, key: str) -> bool:
        return ray.get(self._desk.take.remote(key, self.owner))

    def release(self, key: str | None) -> None:
        ray.get(self._desk.release.remote(key, self.owner))


class _Reporter:
    """What a worker tells the desk of its cell; steps of work may be done in any thread."""

    def __init__(self, desk: Any, cell: str, sign: Sign) -> None:
        self._desk, self._cell, self._sign = desk, cell, sign
        self._lock, self._sent = threading.Lock(), 0.0

    def send(self) -> ray.ObjectRef:
        self._sent = time.monotonic()
        return self._desk.tell.remote(self._cell, self._sign)

    def stage(self, cell: str, stage: str, records: int) -> None:
        with self._lock:
            new = stage != self._sign.stage
            self._sign = Sign(self._sign.attempt, self._sign.place, stage, records)
            if new or time.monotonic() - self._sent >= BEAT_SECONDS:
                self.send()

    def alive(self) -> None:
        """Say that work goes on, if nothing was said for a while."""
        if time.monotonic() - self._sent >= BEAT_SECONDS:
            with self._lock:
                self.send()


def _here() -> Place:
    node = ray.get_runtime_context().get_node_id()
    return Place(node, f"{platform.node()}/{node[:8]}", os.getpid())


def _locks_hold(judging: Path) -> bool:
    """Whether the question that the driver holds cannot be taken here."""
    try:
        with Replies(judging).claims() as claims:
            return not claims.take(CANARY)
    except OSError:
        return False
