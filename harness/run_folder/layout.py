"""The run folder. Whenever a process is killed, what is in the folder is whole and a rerun goes on from it.

suite.yaml  identity.json                 what was asked for, and the content it depends on
plan.json                                 the cells, benchmarks and metrics; written before any work
environment.json                          where, when and with what; written before the first cell
judging/                                  what the judge keeps: replies, each as it comes, and the ledger
cells/<cell>/compute.json                 the bill of the fit, written before the artifact
cells/<cell>/artifact/                    renamed into place when it is complete: it always has its bill
cells/<cell>/records/<benchmark>.jsonl    renamed from .jsonl.partial when the benchmark is over
cells/<cell>/answers/<benchmark>.jsonl    what the model answered, each batch as it comes
cells/<cell>/<benchmark>/                 files in the evaluator's own formats
cells/<cell>/second/                      the second judge's records and files, laid out like a cell's, no answers
cells/<cell>/diagnostics/<benchmark>.json what the intervention did during the benchmark
cells/<cell>/cell.json                    last: the cell is over
cells/<cell>/traceback.txt                only of a failed cell
cells/<cell>/log.txt                      what libraries printed
report/                                   what `dspa-bench report` makes of it
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

from harness.run_folder.cell import CellFolder
from harness.run_folder.plan import Environment, Plan

_TEXT_TEMPORARY = re.compile(r"\..+\.(json|jsonl|yaml|txt|csv)\.[a-z0-9_]{8}")
"""What `write_text` writes to before it renames."""
_REPORT_TEMPORARY = re.compile(r"\.report-[a-z0-9_]{8}")
"""The folder beside report/ that a report is built in."""


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
                    f"{str(path)!r} is not a run folder: it has no {needed}; give the --out folder of `dspa-bench run`"
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
        """Hold the folder for this process; ValueError when another live process holds it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            text = f"another process is writing to {str(self.path)!r}; wait for it or give another --out"
            raise ValueError(text) from None
        except OSError as problem:
            raise ValueError(f"cannot write to the run folder {str(self.path)!r}: {problem.strerror}") from None
        try:
            self._sweep()
            yield
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Remove what killed processes were in the middle of writing, by the names they write under.

        Whatever else somebody keeps in the folder stays: hidden folders and links are not even looked into.
        """
        for path in self.path.iterdir():
            if _REPORT_TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif _TEXT_TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink()
        for cell in (self.path / "cells").glob("[!.]*"):
            partial = cell / "artifact.partial"
            if partial.is_dir() and not partial.is_symlink():
                shutil.rmtree(partial)
            for home in (cell, cell / "second"):
                for records in (home / "records").glob("[!.]*.jsonl.partial"):
                    records.unlink()
            for folder, below, files in os.walk(cell):
                below[:] = [name for name in below if not name.startswith(".")]
                for name in files:
                    if _TEXT_TEMPORARY.fullmatch(name):
                        Path(folder, name).unlink()
