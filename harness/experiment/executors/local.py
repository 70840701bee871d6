"""Cells on this machine: in this very process, or in a handful of worker processes."""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from socket import gethostname

from tqdm import tqdm

from harness.experiment.executors.worker import (
    BEAT_SECONDS,
    START_SECONDS,
    Progress,
    all_output_to,
    cell_log,
    fail,
    variables,
)
from harness.pulse import heard_by
from harness.run_folder.layout import RunFolder
from harness.run_folder.sweep import sweep_cell
from harness.signals import Ending

GRACE_SECONDS = 5.0
"""How long a worker may take to leave off after an interrupt before it is killed."""
LOOK_SECONDS = 5.0
"""How often workers are looked at that say nothing."""


def run_local(
    folder: Path, cells: Collection[str], *, workers: int, threads: int, progress: Progress, hung_minutes: float = 0.0
) -> None:
    """Run ``cells`` of the run in ``folder`` (absolute); a cell that fails leaves its reason in the folder.

    The next cell is asked for when it can be begun, so ``cells`` may be claimed as they are handed out
    (`harness.experiment.sharing`). One worker means this very process. Otherwise ``workers`` processes are spawned,
    each with ``threads`` torch threads; they end with this process, however it ends. One that gives no sign of progress
    (`harness.pulse`) for ``hung_minutes`` (0: for ever) is ended, and its cell begun once more; the second time it
    failed.
    """
    if workers == 1 or len(cells) == 1:
        _run_here(folder, cells, threads, progress)
    else:
        _Pool(folder, min(workers, len(cells)), threads, progress, 60 * hung_minutes).run(cells)


def _run_here(folder: Path, cells: Iterable[str], threads: int, progress: Progress) -> None:
    import torch

    from harness.experiment.cell import CellContext, run_cell

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        context = CellContext.open(folder)
        for cell in cells:
            # Not by file descriptor as in a worker: the progress display is written by this very process.
            with cell_log(RunFolder(folder).cell(cell)) as log, redirect_stdout(log), redirect_stderr(log):
                run_cell(context, context.cells[cell], progress.stage)
            progress.over(cell)
    finally:
        torch.set_num_threads(before)


@dataclass
class _Worker:
    """``silent``: seconds since its last sign of life. ``stage`` is what it said last, "" before its first cell."""

    process: BaseProcess
    pipe: Connection
    cell: str | None = None
    stage: str = ""
    silent: float = 0.0


@dataclass
class _Pool:
    """Worker processes and the cells that they are given; with ``hung_seconds`` of 0 they may be silent for ever."""

    folder: Path
    size: int
    threads: int
    progress: Progress
    hung_seconds: float
    todo: Iterator[str] = field(default_factory=lambda: iter(()))
    again: list[str] = field(default_factory=list)  # whose worker hung
    running: list[_Worker] = field(default_factory=list)
    hung: dict[str, str] = field(default_factory=dict)  # cell -> how its worker hung

    def run(self, cells: Iterable[str]) -> None:
        """Give ``cells`` to workers until all are over."""
        self.todo = iter(cells)
        looked = time.monotonic()
        try:
            while True:
                while len(self.running) < self.size and (cell := self._next()) is not None:
                    self.running.append(_start(self.folder, self.threads))
                    self._give(self.running[-1], cell)
                if not self.running:
                    return
                ready = wait([worker.pipe for worker in self.running], LOOK_SECONDS if self.hung_seconds else None)
                before, looked = looked, time.monotonic()
                for worker in list(self.running):
                    # No more than was waited for: all of the run may have been stopped, and be going on again.
                    worker.silent += min(looked - before, 2 * LOOK_SECONDS)
                    if worker.pipe in ready:
                        worker.silent = 0.0
                        self._hear(worker)
                    elif self.hung_seconds and worker.silent >= self._patience(worker):
                        self._end_hung(worker)
        finally:
            for worker in self.running:
                worker.process.terminate()
            for worker in self.running:
                _end(worker.process)

    def _patience(self, worker: _Worker) -> float:
        return self.hung_seconds if worker.stage else max(self.hung_seconds, START_SECONDS)

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionError):
            self.running.remove(worker)
            self._died(worker)
            return
        if message == "over":
            assert worker.cell is not None
            self.progress.over(worker.cell)
            cell = self._next()
            self._give(worker, cell)
            if cell is None:
                worker.process.join()
                self.running.remove(worker)
        elif message != "alive":
            worker.stage = message[1]
            self.progress.stage(*message)

    def _next(self) -> str | None:
        return self.again.pop() if self.again else next(self.todo, None)

    def _give(self, worker: _Worker, cell: str | None) -> None:
        """Hand ``cell`` to ``worker``; None tells it to go home."""
        worker.cell = cell
        with suppress(ConnectionError):  # it died in between: reading its pipe will tell
            worker.pipe.send(cell and (cell, self.hung.get(cell)))

    def _died(self, worker: _Worker) -> None:
        """A worker that died (killed for memory, crashed in native code) fails its cell and no other."""
        worker.process.join()
        code = worker.process.exitcode
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = "; not enough memory? use fewer execution.workers" if code == -signal.SIGKILL else ""
        self._fail(worker, f"worker process died ({cause}{hint})")

    def _end_hung(self, worker: _Worker) -> None:
        """End a worker in which nothing goes on; where it was stands in the cell's log. Its cell gets one more try."""
        self.running.remove(worker)
        if worker.process.pid is not None and worker.stage:
            os.kill(worker.process.pid, signal.SIGUSR1)
            worker.process.join(0.5)
        worker.process.terminate()
        _end(worker.process)
        how = f"no progress for {self.hung_seconds / 60:g} minutes in {worker.stage or 'its beginning'}"
        cell = worker.cell
        if cell is None or cell in self.hung:
            self._fail(worker, f"worker process hung twice ({how}) and was ended")
            return
        self.hung[cell] = how
        self.again.append(cell)
        sweep_cell(RunFolder(self.folder).cell(cell).path)
        self.progress.stage(cell, f"{how}; its worker was ended, and it is begun once more", 0)

    def _fail(self, worker: _Worker, error: str) -> None:
        if worker.cell is None:
            return
        fail(RunFolder(self.folder).cell(worker.cell), error, hung=self.hung.get(worker.cell), host=gethostname())
        self.progress.over(worker.cell)


def _end(process: BaseProcess) -> None:
    """Wait for a process that was told to leave off, and kill it when it does not."""
    process.join(GRACE_SECONDS)
    process.kill()
    process.join()


def _start(folder: Path, threads: int) -> _Worker:
    """A spawned worker. Thread counts must be in its environment before it starts."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(folder, threads, there), name="dspa-bench worker")
    before = dict(os.environ)
    os.environ.update(variables(threads))
    try:
        process.start()
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    there.close()
    return _Worker(process, here)


def _work(folder: Path, threads: int, pipe: Connection) -> None:
    """The body of a worker process.

    SIGTERM to the whole group comes twice, from outside and by the parent; a second one in the middle of a finalizer
    left a semaphore unlinked but registered, and Python's resource tracker complained.
    """
    Ending(signal.SIGTERM, SystemExit(1)).begin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # tqdm's own lock is a named semaphore, which a killed worker would leave to Python's resource tracker's warnings.
    tqdm.set_lock(threading.RLock())
    import torch

    from harness.experiment.cell import CellContext, run_cell

    torch.set_num_threads(threads)
    faulthandler.register(signal.SIGUSR1, file=2)  # by which the parent asks where a hung worker is
    context: CellContext | None = None
    voice = _Voice(pipe)
    with heard_by(voice.alive):
        while (task := pipe.recv()) is not None:
            name, hung = task
            with cell_log(RunFolder(folder).cell(name)) as log, all_output_to(log):
                context = context or CellContext.open(folder)
                run_cell(context, context.cells[name], lambda *news: voice.say(news), hung)
            voice.say("over")


class _Voice:
    """What a worker tells its parent; steps of work may be done in any thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock, self._said = pipe, threading.Lock(), 0.0

    def say(self, message: object) -> None:
        with self._lock:
            self._said = time.monotonic()
            self._pipe.send(message)

    def alive(self) -> None:
        """Say that work goes on, if nothing was said for a while."""
        if time.monotonic() - self._said >= BEAT_SECONDS:
            self.say("alive")


def _die_with_parent() -> None:
    """A killed run must not leave workers behind that write into the folder while the rerun does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
