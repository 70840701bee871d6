"""A suite from beginning to end: check, plan, open the run folder, run what is missing."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from harness.data.triples import triples_hash
from harness.discretion import discreet
from harness.experiment.check import Checked, check_suite
from harness.experiment.executors import Progress, run_local
from harness.experiment.forecast import check_bills
from harness.experiment.plan import Identity, differences, grown, identify, identity_hash, make_plan, sae_hash
from harness.experiment.reuse import Donor, reusable
from harness.experiment.room import without_left_out
from harness.experiment.suite import Suite, load_suite
from harness.files import Document, check_can_make, read_sealed, write_sealed, write_text
from harness.judging import Judge
from harness.judging.ledger import MEND
from harness.model.base import base_identity
from harness.provenance import git_state, machine, package_versions
from harness.run_folder.adoption import adopt
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import Environment, Plan
from harness.run_folder.sweep import is_ours
from harness.run_folder.verify import LEDGER, damage_outside_cells, mend_cell, mend_outside_cells, outside_cells, verify
from harness.seals import sealed_text


@dataclass(frozen=True)
class Prepared:
    """A suite that passed every check against the run folder it is to fill. Nothing has been written yet."""

    suite: Suite
    checked: Checked
    plan: Plan
    identity: Identity
    folder: RunFolder
    reused: Mapping[str, Donor] = field(default_factory=dict)  # cell -> the run that it is copied from

    @property
    def failures(self) -> dict[str, list[str]]:
        """Cell -> why it is not all there; no entry for a cell with nothing left to do."""
        found = {cell.name: self.failures_of(cell.name) for cell in self.plan.cells}
        return {name: reasons for name, reasons in found.items() if reasons}

    @property
    def damage(self) -> list[str]:
        """A sentence for every file of the folder that is not what was written; `run_suite` makes them again."""
        path = self.folder.path
        begun = (path / "environment.json").exists() or (path / "cells").exists()
        return verify(self.folder, thorough=False) if begun else []

    def failures_of(self, cell: str) -> list[str]:
        """Why ``cell`` is not all there: a line per reason."""
        return self.folder.cell(cell).failures(self.suite.benchmarks, self.suite.judged_twice)


def prepare(
    suite_path: str | Path,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    donors: Sequence[str | Path] = (),
    *,
    answering: bool = True,
) -> Prepared:
    """Load, check and plan; ``out`` is runs/<suite name> unless given. ``donors`` are runs to copy equal cells from.
    ``answering`` is False where all answers are there, so that no engine is needed.

    Raises ValueError for everything that is wrong with the suite, its files or a run folder, before any work.
    """
    suite = load_suite(suite_path, overrides)
    checked = check_suite(suite, answering=answering)
    folder = RunFolder(out if out is not None else Path("runs") / suite.file.name)
    plan = make_plan(suite, folder.path)
    check_bills(suite, plan.cells, checked.triples, folder.path)
    suite = replace(suite, benchmarks=without_left_out(suite.benchmarks, checked.left_out.benchmarks))
    identity = identify(suite, plan.cells, checked.triples, checked.left_out)
    _check_folder(folder, identity)
    others = [Donor(Path(path), identity) for path in donors]
    return Prepared(suite, checked, plan, identity, folder, reusable(others, folder, plan))


def run_suite(
    prepared: Prepared, progress: Progress, work: Callable[[list[str]], object] | None = None
) -> Mapping[str, list[str]]:
    """Run every cell that is missing, failed or damaged; returns {cell: reasons} of those still not all there.

    ``work`` brings the cells with these names to their end; by default it fits, evaluates and judges.

    What is damaged is removed first, with what was made from it. A complete run is left untouched. May be interrupted
    at any moment: the next call goes on from the folder.
    """
    folder, suite = prepared.folder, prepared.suite
    with folder.lock():
        _check_folder(folder, prepared.identity)  # again under the lock
        write_sealed(folder.path / "identity.json", prepared.identity)
        write_text(folder.path / "suite.yaml", sealed_text(suite.to_yaml(folder.path)))
        before = _read_if_whole(Plan, folder.path / "plan.json")
        plan = grown(prepared.plan, before, folder.path)
        if plan != before:
            plan.write(folder.path / "plan.json")
        for name, donor in prepared.reused.items():
            if not folder.cell(name).path.exists():
                adopt(folder.cell(name), donor.folder.cell(name), donor.folder.plan.name)
        if prepared.checked.left_out:
            prepared.checked.left_out.write(folder.path / "left_out.json")
        mended = mend_outside_cells(folder)
        todo = list(prepared.failures)
        files = {one.name: one.files for one in plan.benchmarks}
        for name in todo:
            mend_cell(folder.cell(name), files)
        described = _read_if_whole(Environment, folder.path / "environment.json")
        # Where every cell was copied, or something else was damaged, there is still something to be described.
        if todo or before is None or described is None or mended:
            with _clock(prepared):
                if todo and work is not None:
                    work(todo)
                elif todo:
                    how = suite.file.execution
                    settings = {"workers": how.workers, "threads": how.threads, "hung_minutes": how.hung_minutes}
                    run_local(folder.path, todo, **settings, progress=progress)
    return prepared.failures


def _check_folder(folder: RunFolder, identity: Identity) -> None:
    path = folder.path
    if path.exists() and not path.is_dir():
        raise ValueError(f"{str(path)!r} is a file; give another --out")
    if not path.exists():
        check_can_make(path)
    damage = damage_outside_cells(folder) if (path / "environment.json").is_file() else {}
    if LEDGER in damage:
        raise ValueError(f"{path / LEDGER} {damage[LEDGER]}: {MEND}")
    environment = _read_if_whole(Environment, path / "environment.json")
    described = environment is not None and environment.files is not None
    if described and environment is not None and environment.suite_hash == identity_hash(identity):
        return  # so it need not have an intact identity.json or plan.json: they are written again
    try:
        there = read_sealed(path / "identity.json")
    except ValueError as problem:
        raise ValueError(
            f"{problem}; nor does environment.json say that the folder is this suite's: put identity.json back from a "
            "copy, or give another --out"
        ) from None
    if there is None:
        if path.is_dir() and any(not is_ours(entry.name) for entry in path.iterdir()):
            raise ValueError(f"{str(path)!r} is not empty and no run of dspa-bench; give another --out")
        return
    if not described:
        folder.check_version()
    found = differences(there, identity)
    if found:
        shown = "".join(f"\n  {line}" for line in found[:10])
        more = f"\n  ... and {len(found) - 10} more" if len(found) > 10 else ""
        raise ValueError(
            f"run folder {str(path)!r} belongs to another suite; these differ:{shown}{more}\n"
            "give another --out, or undo the change to go on with this run"
        )


D = TypeVar("D", bound=Document)


def _read_if_whole(kind: type[D], path: Path) -> D | None:
    """What is in ``path``; None where there is no such file, or it is damaged and so written anew."""
    try:
        return kind.read(path)
    except ValueError:
        return None


@contextmanager
def _clock(prepared: Prepared) -> Iterator[None]:
    """Keep environment.json: written before the cells, and its ``seconds`` (summed over sittings) after them."""
    path = prepared.folder.path / "environment.json"
    before = _read_if_whole(Environment, path)
    start, seconds = time.monotonic(), before.seconds if before is not None else 0.0
    judges = _prepared_judges(prepared)
    for warning in (text for judge in judges.values() for text in judge.warnings):
        print(warning, file=sys.stderr)
    environment = _environment(prepared, judges)
    if before is not None:
        environment = environment.model_copy(update={"created": before.created, "seconds": seconds})
    environment.model_copy(update={"files": outside_cells(prepared.folder)}).write(path)
    try:
        yield
    finally:
        seconds = round(seconds + time.monotonic() - start, 1)
        files = outside_cells(prepared.folder)
        environment.model_copy(update={"seconds": seconds, "files": files}).write(path)


def _prepared_judges(prepared: Prepared) -> dict[str, Judge]:
    """All judges after `Judge.prepare`; what libraries print meanwhile goes to a log beside what the judges keep."""
    folder = prepared.folder.judging
    judges = {key: judge.at(folder) for key, judge in prepared.suite.judges.items()}
    printed = StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            for judge in judges.values():
                judge.prepare()
    finally:
        if printed.getvalue():
            write_text(folder / "log.txt", discreet(printed.getvalue()))
    return judges


def _environment(prepared: Prepared, judges: Mapping[str, Judge]) -> Environment:
    """environment.json as it is now; what ``judges`` say of themselves (a reward model's accuracy) is in it."""
    suite, file, triples = prepared.suite, prepared.suite.file, prepared.checked.triples

    def entry(section: BaseModel, **more: Any) -> dict[str, Any]:
        # What was too long, and left out, stands in left_out.json and the notes.
        shown = section.model_dump(mode="json", exclude={"too_long"}, context={"folder": prepared.folder.path})
        return {**shown, **more}

    described: dict[str, Any] = {key: {"label": one.label, "statement": one.statement} for key, one in judges.items()}
    if "second_judge" in described:
        described["second_judge"]["benchmarks"] = suite.judged_twice
    return Environment.model_validate(
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": discreet(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
            "suite_hash": identity_hash(prepared.identity),
            "git": git_state(),
            **machine(),
            "threads": file.execution.threads,
            "packages": package_versions(),
            "judge": None,
            **described,
            "engine": suite.engine and suite.engine.label,
            "notes": [
                *([] if suite.engine is None else [suite.engine.statement]),
                *map(discreet, prepared.checked.notes),
                *(note for benchmark in suite.benchmarks.values() for note in benchmark.notes),
            ],
            "base": entry(file.base, hash=base_identity(file.base)),
            "saes": {name: entry(ref, hash=sae_hash(ref)) for name, ref in file.saes.items()},
            "triples": entry(file.triples, n=len(triples), hash=triples_hash(triples)),
        }
    )
