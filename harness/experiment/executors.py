"""Who runs the cells: this process, or a handful of worker processes on this machine."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol, TextIO

from tqdm import tqdm

from harness.discretion import discreet, make_discreet
from harness.provenance import code_commit
from harness.run_folder.layout import CellFolder, CellState, RunFolder

GRACE_SECONDS = 5.0
"""How long a worker may take to leave off after an interrupt before it is killed."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# glibc keeps freed training memory in pieces it cannot reuse; returning blocks from 512 KiB on to the system lowers
# the peak of a fit, for some processor time; lower bounds cost more of it.
MEMORY_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": "524288", "MALLOC_TRIM_THRESHOLD_": "524288"}


class Progress(Protocol):
    """What is told to whoever watches a run."""

    def stage(self, cell: str, stage: str, records: int) -> None: ...

    def over(self, cell: str) -> None: ...


def run_local(folder: Path, cells: Sequence[str], *, workers: int, threads: int, progress: Progress) -> None:
    """Run ``cells`` of the run in ``folder``; a cell that fails leaves its reason in the folder.

    One worker means this very process. Otherwise ``workers`` processes are spawned, each with ``threads``
    torch threads; they end with this process, however it ends.
    """
    folder = folder.absolute()  # lm-eval changes the working directory while it reads tasks
    if workers == 1 or len(cells) == 1:
        _run_here(folder, cells, threads, progress)
    else:
        _run_in_processes(folder, cells, min(workers, len(cells)), threads, progress)


def _run_here(folder: Path, cells: Sequence[str], threads: int, progress: Progress) -> None:
    import torch

    from harness.experiment.cell import CellContext, run_cell

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        context = CellContext.open(folder)
        for cell in cells:
            # Not by file descriptor as in a worker: the progress display is written by this very process.
            with _log(RunFolder(folder).cell(cell)) as log, redirect_stdout(log), redirect_stderr(log):
                run_cell(context, context.cells[cell], progress.stage)
            progress.over(cell)
    finally:
        torch.set_num_threads(before)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    cell: str | None = None


def _run_in_processes(folder: Path, cells: Sequence[str], workers: int, threads: int, progress: Progress) -> None:
    todo = list(cells)[::-1]
    running: list[_Worker] = []
    try:
        while todo or running:
            while todo and len(running) < workers:
                running.append(_start(folder, threads))
                _give(running[-1], todo)
            ready = wait([worker.pipe for worker in running])
            for worker in [w for w in running if w.pipe in ready]:
                try:
                    message = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    _fail_cell(worker, folder, progress)
                    running.remove(worker)
                    continue
                if message == "over":
                    assert worker.cell is not None
                    progress.over(worker.cell)
                    if not _give(worker, todo):
                        worker.process.join()
                        running.remove(worker)
                else:
                    progress.stage(*message)
    finally:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            worker.process.join(GRACE_SECONDS)
            worker.process.kill()
            worker.process.join()


def _start(folder: Path, threads: int) -> _Worker:
    """A spawned worker. Thread counts and allocator settings must be in its environment before it starts."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(folder, threads, there), name="dspa-bench worker")
    before = dict(os.environ)
    os.environ.update(MEMORY_VARIABLES | before | dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        process.start()
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    there.close()
    return _Worker(process, here)


def _give(worker: _Worker, todo: list[str]) -> bool:
    """Hand the next cell to ``worker``, or tell it to go home when there is none."""
    worker.cell = todo.pop() if todo else None
    with suppress(ConnectionError):  # it died in between: reading its pipe will tell
        worker.pipe.send(worker.cell)
    return worker.cell is not None


def _fail_cell(worker: _Worker, folder: Path, progress: Progress) -> None:
    """A worker that died (killed for memory, crashed in native code) fails its cell and no other."""
    worker.process.join()
    if worker.cell is None:
        return
    code = worker.process.exitcode
    cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    hint = "; not enough memory? use fewer execution.workers" if code == -signal.SIGKILL else ""
    cell_folder = RunFolder(folder).cell(worker.cell)
    error = discreet(f"worker process died ({cause}{hint}); see {cell_folder.log}")
    cell_folder.finish(CellState(status="failed", error=error, commit=code_commit()))
    progress.over(worker.cell)


def _work(folder: Path, threads: int, pipe: Connection) -> None:
    """The body of a worker process."""
    signal.signal(signal.SIGTERM, _leave_off)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # tqdm's own lock is a named semaphore, which a killed worker would leave to Python's resource tracker's warnings.
    tqdm.set_lock(threading.RLock())
    import torch

    from harness.experiment.cell import CellContext, run_cell

    torch.set_num_threads(threads)
    context: CellContext | None = None
    while (name := pipe.recv()) is not None:
        with _log(RunFolder(folder).cell(name)) as log, _all_output_to(log):
            context = context or CellContext.open(folder)
            run_cell(context, context.cells[name], lambda *news: pipe.send(news))
        pipe.send("over")


def _leave_off(*_: object) -> None:
    """End this worker at the first SIGTERM; a second one must not break into the cleaning up of the first.

    SIGTERM to the whole group comes twice, from outside and by the parent; the second, in the middle of a
    finalizer, left a semaphore unlinked but registered, and Python's resource tracker complained.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _die_with_parent() -> None:
    """A killed run must not leave workers behind that write into the folder while the rerun does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _log(folder: CellFolder) -> Iterator[TextIO]:
    """The cell's log.txt: what libraries print would tear up the progress display."""
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with folder.log.open("a", encoding="utf-8") as log:
            yield log
    finally:
        make_discreet(folder.log)


@contextmanager
def _all_output_to(log: TextIO) -> Iterator[None]:
    """Send what this process prints, in Python or below it, to ``log``."""
    saved = [os.dup(1), os.dup(2)]
    for number in (1, 2):
        os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(saved, 1):
            os.dup2(copy, number)
            os.close(copy)
