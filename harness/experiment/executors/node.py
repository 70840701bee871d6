"""What runs on the nodes of a Ray cluster: the look at a node beforehand, and the body of a cell's task."""

import faulthandler
import fcntl
import os
import platform
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from tqdm import tqdm

from harness.experiment.executors.desk import Place, Sign
from harness.experiment.executors.worker import BEAT_SECONDS, all_output_to, cell_log
from harness.provenance import code_commit, package_versions
from harness.pulse import heard_by
from harness.run_folder.layout import RunFolder
from harness.seals import digest

if TYPE_CHECKING:
    from harness.experiment.cell import CellContext


@dataclass(frozen=True)
class Job:
    """What all cells of one sitting have in common.

    ``plan`` is the digest of the plan in the run folder ``folder``, ``environment`` are variables of the driver,
    ``python_path`` its sys.path, ``versions`` those of its code and packages.
    """

    folder: str
    plan: str
    threads: int
    environment: dict[str, str]
    python_path: tuple[str, ...]
    versions: dict[str, str | None]


def versions() -> dict[str, str | None]:
    """Of the code and of all that results may depend on."""
    return {"Python": platform.python_version(), "commit": code_commit(), **package_versions()}


def plan_digest(folder: Path) -> str | None:
    """Of the plan in a run folder; None where there is none."""
    path = folder / "plan.json"
    return digest(path.read_bytes()) if path.is_file() else None


def look(job: Job) -> str | None:
    """Why this node cannot do the cells of ``job``; None where it can."""
    host, mine = _here().host, versions()
    if mine != job.versions:
        names = [name for name in {**job.versions, **mine} if job.versions.get(name) != mine.get(name)]
        shown = ", ".join(f"{name} {mine.get(name)} (here {job.versions.get(name)})" for name in names[:5])
        return f"Ray node {host} has {shown}: its results could differ; install the same on all nodes"
    if plan_digest(Path(job.folder)) != job.plan:
        return (
            f"Ray node {host} does not see the run folder {job.folder!r}: put it, and what the suite names, on a file "
            "system that all nodes share, or set execution.shared_folder: false, which sends files to the nodes"
        )
    return None


def work(job: Job, cell: str, attempt: int, hung: str | None, lost: tuple[str, ...], desk: Any) -> None:
    """Bring ``cell`` to its end in this process, which is in a task of Ray and may have had other cells before.

    ValueError where the node cannot (see `look`). ``desk`` is the actor `Desk`.
    """
    place, folder = _here(), Path(job.folder)
    reporter = _Reporter(desk, cell, Sign(attempt, place))
    ray.get(reporter.send())  # where it is must be known, whatever becomes of it
    _set_up(job)
    if (reason := look(job)) is not None:
        raise ValueError(reason)
    from harness.experiment.cell import run_cell

    with cell_log(RunFolder(folder).cell(cell)) as log, all_output_to(log), heard_by(reporter.alive):
        with suppress(OSError):  # a file system without locks
            # A worker that a killed driver left behind ends soon, but may not have yet; the system frees its lock.
            fcntl.flock(log, fcntl.LOCK_EX)
        context = _context(job.folder)
        run_cell(context, context.cells[cell], reporter.stage, hung, place.host, lost)


def _here() -> Place:
    node = ray.get_runtime_context().get_node_id()
    return Place(node, f"{platform.node()}/{node[:8]}", os.getpid())


_prepared = False


def _set_up(job: Job) -> None:
    """Make this process one like the driver, before it loads anything heavy."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    os.environ.update(job.environment)
    sys.path += [entry for entry in job.python_path if entry not in sys.path]
    # tqdm's own lock is a named semaphore, which a killed worker would leave to Python's resource tracker's warnings.
    tqdm.set_lock(threading.RLock())
    import torch

    torch.set_num_threads(job.threads)
    faulthandler.register(signal.SIGUSR1, file=2)  # by which the driver asks where a hung worker is


@lru_cache(maxsize=1)
def _context(folder: str) -> "CellContext":
    """That of the run, read once in a process; so are base model and triples."""
    from harness.experiment.cell import CellContext

    return CellContext.open(Path(folder))


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
