"""The run folder. Whenever a process is killed, what is in the folder is whole and a rerun goes on from it.

suite.yaml  identity.json  environment.json
judging/                                  what the judge keeps: replies, each as it comes, and the ledger
cells/<cell>/compute.json                 the bill of the fit, written before the artifact
cells/<cell>/artifact/                    renamed into place when it is complete: it always has its bill
cells/<cell>/records/<benchmark>.jsonl    renamed from .jsonl.partial when the benchmark is over
cells/<cell>/<benchmark>/                 files in the evaluator's own formats
cells/<cell>/answers/<benchmark>.jsonl    what the model answered, each batch as it comes
cells/<cell>/second/                      the second judge's records and files, laid out like a cell's
cells/<cell>/diagnostics/<benchmark>.json what the intervention did during the benchmark
cells/<cell>/cell.json                    last: the cell is over
cells/<cell>/traceback.txt                only of a failed cell
cells/<cell>/log.txt                      what libraries printed
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.benchmark import Record
from harness.files import read_text, write_text
from harness.run_folder.answers import AnswerStore

_TEXT_TEMPORARY = re.compile(r"\..+\.(json|jsonl|yaml|txt|csv)\.[a-z0-9_]{8}")
"""What `write_text` writes to before it renames."""
_REPORT_TEMPORARY = re.compile(r"\.report-[a-z0-9_]{8}")
"""The folder beside report/ that a report is built in."""


def write_json(path: Path, value: Any) -> None:
    """`write_text` of ``value`` as indented JSON; a NaN raises ValueError (it is not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The JSON in ``path``, or None when there is no such file; ValueError naming the file when it is broken."""
    if not path.is_file():
        return None
    try:
        return json.loads(read_text(path, "run"))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path}:{problem.lineno}: not valid JSON: {problem.msg}") from None


def check_can_make(path: Path) -> None:
    """Raise ValueError when the folder ``path``, given as --out, could not be made; makes nothing."""
    path = path.absolute()
    there = next(parent for parent in path.parents if os.path.lexists(parent))
    if not there.is_dir():
        raise ValueError(f"--out {str(path)!r} cannot be made: {str(there)!r} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--out {str(path)!r} cannot be made: no permission to write to {str(there)!r}")


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def cell(self, name: str) -> "CellFolder":
        return CellFolder(self.path / "cells" / name)

    @property
    def judging(self) -> Path:
        """What the judge keeps: verdicts, ledger, trained weights."""
        return self.path / "judging"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; ValueError when another live process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a+")
        except OSError as problem:
            raise ValueError(f"cannot write to the run folder {str(self.path)!r}: {problem.strerror}") from None
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = f"another process is writing to {str(self.path)!r}; wait for it or give another --out"
                raise ValueError(text) from None
            self._sweep()
            yield

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


class CellFolder:
    """The folder of one cell. Only one process at a time writes to it (see `RunFolder.lock`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def fitted(self) -> bool:
        return self.artifact.is_dir()

    @property
    def second(self) -> "CellFolder":
        """What the second judge made of the same answers: its records, and files in the evaluators' formats."""
        return CellFolder(self.path / "second")

    def answers(self, benchmark: str) -> AnswerStore:
        """The model's answers of a benchmark, as they came; the second judge is given the same."""
        return AnswerStore(self.path / "answers" / f"{benchmark}.jsonl")

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def state(self) -> dict[str, Any] | None:
        """The content of cell.json; None while the cell is not over. ValueError when it is not a cell's."""
        path = self.path / "cell.json"
        state = read_json(path)
        if state is not None and not (isinstance(state, dict) and {"status", "error"} <= state.keys()):
            raise ValueError(f"{path}: not the description of a cell: it has no status; remove it and run again")
        return state

    def records(self, benchmark: str) -> list[dict[str, Any]] | None:
        """The records of a benchmark that is over, None otherwise."""
        path = self._records(benchmark)
        if not path.is_file():
            return None
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as problem:
            raise ValueError(f"{path}: broken: {problem}; remove it and run again") from None

    def failures(self, benchmarks: Iterable[str], judged_twice: Iterable[str] = ()) -> list[str]:
        """Why this cell is not all there: a line per reason, none when nothing is left to do.

        ``judged_twice`` are the benchmarks that a second judge is to look at too.
        """
        state = self.state()
        if state is None:
            return ["not run to its end"]
        if state["status"] == "failed":
            return [state["error"]]
        if state.get("second_judge_error"):
            return [state["second_judge_error"]]
        reasons = [reason for name in benchmarks if (reason := self._failure(name)) is not None]
        for name in judged_twice:
            reason = self.second._failure(name)
            if reason is None and not self.judged_alike(name):
                reason = f"{name}: judged other answers than there are now"
            if reason is not None:
                reasons.append(f"second judge, {reason}")
        return reasons

    def settled(self, benchmark: str) -> bool:
        """Whether ``benchmark`` is over without a failed record, so that a rerun need not touch it."""
        return self._failure(benchmark) is None

    def judged_alike(self, benchmark: str) -> bool:
        """Whether both judges' records are about the same items, with the same answers where both name theirs."""
        mine, others = (_answers(folder.records(benchmark) or ()) for folder in (self, self.second))
        return mine.keys() == others.keys() and all(None in (a, others[i]) or a == others[i] for i, a in mine.items())

    def _failure(self, benchmark: str) -> str | None:
        """What is wrong with the records of ``benchmark``; None when nothing is."""
        records = self.records(benchmark)
        if records is None:
            return f"{benchmark}: not run"
        errors = [record["error"] for record in records if record["error"] is not None]
        return f"{benchmark}: {len(errors)} of {len(records)} records failed, first: {errors[0]}" if errors else None

    def save_bill(self, bill: Any) -> None:
        """Write compute.json; to be done before the artifact is renamed into place."""
        write_json(self.path / "compute.json", bill)

    def save_diagnostics(self, benchmark: str, figures: dict[str, float]) -> None:
        write_json(self.path / "diagnostics" / f"{benchmark}.json", figures)

    def diagnostics(self, benchmark: str) -> dict[str, float]:
        """What `save_diagnostics` wrote; empty when there is nothing."""
        return read_json(self.path / "diagnostics" / f"{benchmark}.json") or {}

    def write_records(self, benchmark: str, records: Iterable[Record]) -> Iterator[Record]:
        """Pass ``records`` on, each appended to a file and synced, which is renamed when they are over.

        An earlier file of the same benchmark stays in place until then. When ``records`` raises, the part
        that was written is removed: a benchmark is there as a whole or not at all. ValueError for a metric
        and item seen twice.
        """
        path = self._records(benchmark)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        seen = set()
        try:
            with partial.open("w", encoding="utf-8") as file:
                for record in records:
                    if (record.metric, record.item) in seen:
                        raise ValueError(f"{benchmark}: two records for item {record.item!r} of {record.metric}")
                    seen.add((record.metric, record.item))
                    # ASCII, because many readers of JSONL take U+2028 and its like for the end of a line.
                    file.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    yield record
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)

    def finish(self, state: dict[str, Any], traceback: str | None = None) -> None:
        """Declare the cell over: writes cell.json, and traceback.txt for a failed one."""
        path = self.path / "traceback.txt"
        if traceback is not None:
            write_text(path, traceback)
        else:
            path.unlink(missing_ok=True)
        write_json(self.path / "cell.json", state)

    def _records(self, benchmark: str) -> Path:
        return self.path / "records" / f"{benchmark}.jsonl"


_ANSWERS = ("answer_key", "answer", "baseline_answer_key", "baseline_answer")


def _answers(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], Any]:
    """(metric, item, whose) -> the answer that was judged, or what it was compared with; None where none is kept."""
    return {(r["metric"], r["item"], k): r["raw"].get(k) for r in records for k in _ANSWERS}
