"""The folder of a cell: its state, records, answers, artifact and bill (see `harness.run_folder.layout`)."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.benchmark import Metric, Record
from harness.compute.bill import Bill
from harness.files import Document, read_json, read_text, write_json, write_text
from harness.run_folder.answers import AnswerStore
from harness.run_folder.marks import Manifest, Mark, differences
from harness.run_folder.training import Curve
from harness.run_folder.tuning import TuningFolder
from harness.seals import read_line, sealed_line

CELL_ENTRIES = ("answers", "artifact", "artifact.partial", "diagnostics", "fitting", "records", "second", "tuning")
CELL_ENTRIES += ("cell.json", "compute.json", "files.json", "log.txt", "traceback.txt", "training.jsonl")
CELL_ENTRIES += ("identity.json", "judging")  # of an `eval`
"""What a cell has beside the folders of its benchmarks."""


class CellState(Document):
    """cell.json: how a cell that is over went. What describes it is in the plan.

    ``error`` says why the cell failed, ``second_judge_error`` what the second judge could not do (the first judge's
    results stand without it). ``triples_hash`` is that of the triples that the fit was given, ``fingerprint`` that of
    the aligned model, ``commit`` that of the code; each is None where it is not known. ``diagnostics`` are figures
    that the intervention reports of itself: ``<benchmark>.<figure>`` -> value. ``origin`` is the name of the run that
    made the cell, where it was copied from another. ``files`` are the marks of the cell's files but for its logs, by
    their names relative to the cell; None in a cell of an older version, whose files cannot be verified. ``hung`` says
    how a worker hung at the cell and was ended before this attempt; None where none did. ``host`` is the machine that
    brought it to its end (of a Ray cluster with the beginning of the node's id); ``lost`` says how earlier attempts
    there were lost with their worker or node.
    """

    sealed: ClassVar[bool] = True
    status: Literal["done", "failed"]
    error: str | None
    second_judge_error: str | None = None
    triples_hash: str | None = None
    fingerprint: str | None = None
    commit: str | None = None
    host: str | None = None
    diagnostics: dict[str, float] = Field(default={})
    origin: str | None = None
    hung: str | None = None
    lost: tuple[str, ...] = ()
    files: dict[str, Mark] | None = None

    @model_validator(mode="after")
    def _has_reason(self) -> Self:
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("error must say why exactly when status is failed")
        return self


class CellFolder:
    """The folder of one cell. Only one process at a time writes to it (see `RunFolder.claims`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def second(self) -> "CellFolder":
        """What the second judge made of the same answers: its records, and files in the evaluators' formats."""
        return CellFolder(self.path / "second")

    @property
    def curve(self) -> Curve:
        """How the training of the artifact went, step by step; empty for a method that trains nothing."""
        return Curve(self.path / "training.jsonl")

    @property
    def fitting(self) -> Path:
        """Where a fit that is not over keeps its checkpoints."""
        return self.path / "fitting"

    @property
    def tuning(self) -> TuningFolder:
        """What was tried before the fit; empty for a variant that is not tuned."""
        return TuningFolder(self.path / "tuning")

    def answers(self, benchmark: str) -> AnswerStore:
        """The model's answers of a benchmark, as they came; the second judge is given the same."""
        return AnswerStore(self.path / "answers" / f"{benchmark}.jsonl")

    @property
    def manifest(self) -> Manifest:
        """The marks of what is over."""
        return Manifest(self.path)

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def state(self) -> CellState | None:
        """The content of cell.json; None while the cell is not over. ValueError when it is not a cell's."""
        path = self.path / "cell.json"
        return CellState.read(path) if path.is_file() else None

    @property
    def end(self) -> tuple[int, int, int] | None:
        """What is another whenever cell.json is written anew; None while the cell is not over."""
        try:
            stat = (self.path / "cell.json").stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    @property
    def bill(self) -> Bill | None:
        """What the fit cost; None before there is a bill. ValueError when it is no bill, or a cell is done without."""
        path, state = self.path / "compute.json", self.state
        done = state is not None and state.status == "done"
        return Bill.read(path) if done or path.is_file() else None

    def records(self, benchmark: str) -> tuple[Record, ...] | None:
        """The records of a benchmark that is over, None otherwise.

        Raises ValueError naming file:line for a line that is no record and for an item that is recorded twice.
        """
        path = self._records(benchmark)
        return tuple(_read_records(path)) if path.is_file() else None

    def has_records(self, benchmark: str) -> bool:
        """Whether there is a file of a benchmark's records, whatever is in it."""
        return self._records(benchmark).is_file()

    def failures(self, benchmarks: Iterable[str], judged_twice: Iterable[str] = ()) -> list[str]:
        """Why this cell is not all there: a line per reason, none when nothing is left to do.

        ``judged_twice`` are the benchmarks that a second judge is to look at too.
        """
        try:
            state, damage = self.state, self.damage()
        except ValueError as problem:
            return [str(problem)]
        except FileNotFoundError:  # another process has just begun with the cell
            return ["not run to its end"]
        if state is None:
            return ["not run to its end"]
        if reason := state.error or state.second_judge_error:
            return [reason]
        if damage:
            return [f"{name} {how} since the cell was over" for name, how in damage.items()]
        found = {name: self._failure(name) for name in benchmarks}
        reasons = list(found.values())
        for name in judged_twice:
            reason = self.second._failure(name)
            if reason is None and found.get(name) is None and not self.judged_alike(name):
                reason = f"{name}: judged other answers than there are now"
            reasons.append(reason and f"second judge, {reason}")
        return [reason for reason in reasons if reason is not None]

    def damage(self, *, thorough: bool = False) -> dict[str, str]:
        """File -> how it differs from what it was when the cell was over (see `Mark.difference`), or that part of it
        which is; {} when nothing does. ValueError for a damaged cell.json."""
        if (state := self.state) is None:
            return self.manifest.differences(thorough=thorough)
        return differences(self.path, state.files or {}, thorough=thorough)

    def settled(self, benchmark: str) -> bool:
        """Whether ``benchmark`` is over without a failed record, so that a rerun need not touch it."""
        return self._failure(benchmark) is None

    def judged_alike(self, benchmark: str) -> bool:
        """Whether both judges' records are about the same items, with the same answers where both name theirs.

        Metrics of which the second has no record are no judge's.
        """
        mine, others = (_answers(folder.records(benchmark) or ()) for folder in (self, self.second))
        if others:
            judged = {metric for metric, _, _ in others}
            mine = {key: answer for key, answer in mine.items() if key[0] in judged}
        return mine.keys() == others.keys() and all(None in (a, others[i]) or a == others[i] for i, a in mine.items())

    def _failure(self, benchmark: str) -> str | None:
        """What is wrong with the records of ``benchmark``; None when nothing is."""
        try:
            records = self.records(benchmark)
        except ValueError as problem:
            return f"{benchmark}: {problem}"
        if records is None:
            return f"{benchmark}: not run"
        errors = [record.error for record in records if record.error is not None]
        return f"{benchmark}: {len(errors)} of {len(records)} records failed, first: {errors[0]}" if errors else None

    def reopen(self) -> None:
        """Declare the cell not over, before anything in it is changed; what is over in it keeps its marks."""
        try:
            state = self.state
        except ValueError:
            state = None
        if state is not None and state.files is None:  # an older version's: what is there is taken for what was
            self.manifest.seal()
        elif state is not None:
            self.manifest.write({name: mark for name, mark in (state.files or {}).items() if name != Manifest.NAME})
        elif Manifest.NAME in self.manifest.differences(thorough=False):
            self.manifest.path.unlink()
        (self.path / "cell.json").unlink(missing_ok=True)

    def save_bill(self, bill: Bill) -> None:
        """Write compute.json; to be done before the artifact is renamed into place."""
        bill.write(self.path / "compute.json")

    def save_diagnostics(self, benchmark: str, figures: Mapping[str, float]) -> None:
        write_json(self.path / "diagnostics" / f"{benchmark}.json", dict(figures))

    def diagnostics(self, benchmark: str) -> dict[str, float]:
        """What `save_diagnostics` wrote; empty when there is nothing."""
        return read_json(self.path / "diagnostics" / f"{benchmark}.json") or {}

    def write_records(self, benchmark: str, metrics: Sequence[Metric], records: Iterable[Record]) -> Iterator[Record]:
        """Pass ``records`` on, each appended to a file and synced, which is renamed when they are over.

        An earlier file of the same benchmark stays in place until then. When ``records`` raises, the part that was
        written is removed: a benchmark is there as a whole or not at all. ValueError for a metric that is not one of
        ``metrics``, those that the benchmark declares, and for a metric and item seen twice.
        """
        path = self._records(benchmark)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        declared = [metric.name for metric in metrics]
        seen = set()
        try:
            with partial.open("wb") as file:
                for record in records:
                    if record.metric not in declared:
                        raise ValueError(
                            f"benchmark {benchmark!r} made a record of metric {record.metric!r}, which it does not "
                            f"declare; it declares: {', '.join(declared) or 'none'}"
                        )
                    if (record.metric, record.item) in seen:
                        raise ValueError(f"{benchmark}: two records for item {record.item!r} of {record.metric}")
                    seen.add((record.metric, record.item))
                    file.write(sealed_line(asdict(record)))
                    file.flush()
                    os.fsync(file.fileno())
                    yield record
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)

    def finish(self, state: CellState, traceback: str | None = None) -> None:
        """Declare the cell over: writes traceback.txt for a failed one, and cell.json with the marks of all files."""
        path = self.path / "traceback.txt"
        path.unlink(missing_ok=True)
        if traceback is not None:
            write_text(path, traceback)
        self.declare(state)

    def declare(self, state: CellState) -> None:
        """Write ``state`` to cell.json, with the marks of all files."""
        marks = self.manifest.seal()
        marks = marks | {Manifest.NAME: Mark.of(self.manifest.path)}
        state.model_copy(update={"files": marks}).write(self.path / "cell.json")

    def _records(self, benchmark: str) -> Path:
        return self.path / "records" / f"{benchmark}.jsonl"


def _read_records(path: Path) -> Iterator[Record]:
    lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_text(path, "records").splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            record = Record(**read_line(line))
        except (ValueError, TypeError) as problem:
            raise ValueError(f"{where}: not a record: {problem}; rerun the suite, which makes it again") from None
        first = lines.setdefault((record.metric, record.item), number)
        if first != number:
            raise ValueError(f"{where}: item {record.item!r} of {record.metric} is already on line {first}")
        yield record


_ANSWERS = [f"{whose}answer{form}" for whose in ("", "baseline_") for form in ("", "_key", "_hash")]


def _answers(records: Iterable[Record]) -> dict[tuple[str, str, str], Any]:
    """(metric, item, name in ``raw``) -> text, or key and hash, of what was judged or compared with; or None."""
    return {(r.metric, r.item, key): r.raw.get(key) for r in records for key in _ANSWERS}
