"""The run folder. Whenever a process is killed, what is in the folder is whole and a rerun goes on from it.

suite.yaml  identity.json                 what was asked for, and the content it depends on
plan.json                                 the cells, benchmarks and metrics; written before any work
left_out.json                             triples and prompts that do not fit, where the suite leaves them out
environment.json                          where, when and with what; written before the first cell
judging/                                  what the judge keeps: replies, each as it comes, and the ledger
claims/                                   which process runs which cell; only while some process does
cells/<cell>/compute.json                 the bill of the fit, written before the artifact
cells/<cell>/tuning/trials.jsonl          what was tried before the fit of a tuned variant, each trial as it is over
cells/<cell>/tuning/best.json             which of them won; written before the fit
cells/<cell>/training.jsonl               loss, learning rate, ... of each optimiser step, as it is done
cells/<cell>/fitting/                     checkpoints of a fit that trains; goes when the artifact is there
cells/<cell>/artifact/                    renamed into place when it is complete: it always has its bill
cells/<cell>/records/<benchmark>.jsonl    renamed from .jsonl.partial when the benchmark is over
cells/<cell>/answers/<benchmark>.jsonl    what the model answered, each batch as it comes
cells/<cell>/<benchmark>/                 files in the evaluator's own formats
cells/<cell>/second/                      the second judge's records and files, laid out like a cell's, no answers
cells/<cell>/diagnostics/<benchmark>.json what the intervention did during the benchmark
cells/<cell>/files.json                   the marks of all that is over, written when the fit or a benchmark is
cells/<cell>/cell.json                    last: the cell is over
cells/<cell>/traceback.txt                only of a failed cell
cells/<cell>/log.txt                      what libraries printed
report/                                   what `dspa-bench report` makes of it
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

from harness.files import locked
from harness.run_folder.cell import CellFolder
from harness.run_folder.claims import Claims
from harness.run_folder.left_out import LeftOut
from harness.run_folder.plan import Environment, Plan
from harness.run_folder.sweep import sweep_run


class RunFolder:
    """The folder of one run, which need not exist yet.

    run = RunFolder.open("runs/sandbox")
    for cell in run.plan.cells:
        print(cell.name, run.cell(cell.name).state)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The run in ``path``, with its plan and environment read.

        Raises ValueError naming file and key for a folder that is not a run, that another version wrote, or that has
        a cell which is not in its plan.
        """
        run = cls(path)
        for needed in ("suite.yaml", "plan.json", "environment.json", "cells"):
            if not (run.path / needed).exists():
                run.check_version()
                raise ValueError(
                    f"{str(path)!r} is not a run folder: it has no {needed}; give the --out folder of `dspa-bench run` "
                    "(where it was lost, the run's own command makes it again)"
                )
        planned = {cell.name for cell in run.plan.cells}
        for folder in sorted((run.path / "cells").glob("[!.]*")):
            if folder.is_dir() and folder.name not in planned:
                raise ValueError(f"{folder}: plan.json has no such cell; it belongs to another run")
        assert run.environment
        return run

    def check_version(self) -> None:
        """Raise ValueError when an older version wrote this folder: one that made no plan.json."""
        # The plan is written before environment.json, so a run that was killed early is not taken for an old one.
        if (self.path / "environment.json").is_file() and not (self.path / "plan.json").exists():
            raise ValueError(
                f"{str(self.path)!r} was written by an older version, which made no plan.json, so this version cannot "
                "read it; run the suite again into a new folder: dspa-bench run SUITE --out NEW"
            )

    @cached_property
    def plan(self) -> Plan:
        """What the run consists of, as plan.json has it when this is first asked for."""
        return Plan.read(self.path / "plan.json")

    @property
    def left_out(self) -> LeftOut:
        """What does not fit the base model's context and is left out; nothing where there is no left_out.json."""
        path = self.path / "left_out.json"
        return LeftOut.read(path) if path.is_file() else LeftOut()

    @cached_property
    def environment(self) -> Environment:
        """environment.json, as it is when this is first asked for."""
        return Environment.read(self.path / "environment.json")

    def cell(self, name: str) -> CellFolder:
        return CellFolder(self.path / "cells" / name)

    @property
    def judging(self) -> Path:
        """What the judge keeps: verdicts, ledger, trained weights."""
        return self.path / "judging"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process, what is unfinished in it gone; ValueError when another live one holds it.

        For folders that one process at a time works in; those of `run` are shared by claims.
        """
        with self.opened(wait=False):
            sweep_run(self.path)
            yield

    @contextmanager
    def opened(self, *, wait: bool = True, seconds: float = 0.0) -> Iterator[None]:
        """The same with everything in it left alone. With ``wait`` for as long as another one holds it, else
        ValueError after so many ``seconds``."""
        busy = f"another process is writing to {str(self.path)!r}; wait for it or give another --out"
        lock, how = self.path / ".lock", {"mend": "give another --out", "seconds": seconds}
        with locked(lock, "run folder", busy=None if wait else busy, **how):
            yield

    @cached_property
    def claims(self) -> Claims:
        """Who runs which cell."""
        return Claims(self.path)
