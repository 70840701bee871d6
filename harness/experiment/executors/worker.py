"""What a worker process does wherever it runs: it keeps the cell's log, and names why a cell failed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from harness.discretion import discreet, make_discreet
from harness.heap import heap_variables
from harness.provenance import code_commit
from harness.run_folder.cell import CellFolder, CellState
from harness.run_folder.sweep import sweep_cell

START_SECONDS = 1800.0
"""How long a worker may at least take to begin with its first cell: it may have to download the model."""
BEAT_SECONDS = 0.5
"""Between two signs of life of a worker, at least."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Progress(Protocol):
    """What is told to whoever watches a run."""

    def stage(self, cell: str, stage: str, records: int) -> None: ...

    def over(self, cell: str) -> None: ...


def variables(threads: int) -> dict[str, str]:
    """Thread counts and the heap's settings, which must be in a process's environment before it starts."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | heap_variables()


def fail(cell: CellFolder, error: str, **more: object) -> None:
    """Write that the cell failed by no doing of its own, once nobody writes there any more; ``more`` goes to its
    state."""
    sweep_cell(cell.path)
    where = f"; see {cell.log}" if cell.log.is_file() else ""
    state = CellState(status="failed", error=discreet(f"{error}{where}"), commit=code_commit())
    cell.finish(state.model_copy(update=more))


@contextmanager
def cell_log(folder: CellFolder) -> Iterator[TextIO]:
    """The cell's log.txt: what libraries print would tear up the progress display."""
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with folder.log.open("a", encoding="utf-8") as log:
            yield log
    finally:
        make_discreet(folder.log)


@contextmanager
def all_output_to(log: TextIO) -> Iterator[None]:
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
