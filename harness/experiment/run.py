"""A suite from beginning to end: check, plan, open the run folder, run what is missing."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from io import StringIO
from pathlib import Path
from socket import gethostname
from typing import Any, TypeVar

from pydantic import BaseModel

from harness.data.triples import triples_hash
from harness.discretion import discreet
from harness.experiment.check import Checked, check_suite
from harness.experiment.executors import Progress, run_cells
from harness.experiment.forecast import check_bills
from harness.experiment.plan import Identity, differences, grown, identify, identity_hash, make_plan, sae_hash
from harness.experiment.reuse import Donor, reusable
from harness.experiment.room import without_left_out
from harness.experiment.sharing import Sharing, share_of
from harness.experiment.suite import Suite, load_suite
from harness.files import Document, check_can_make, read_sealed, write_sealed, write_text
from harness.judging import Judge
from harness.judging.ledger import MEND
from harness.model.base import base_identity
from harness.provenance import git_state, machine, package_versions
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import Environment, MachineEntry, Plan
from harness.run_folder.sweep import is_ours, sweep_documents, sweep_run
from harness.run_folder.verify import LEDGER, damage_outside_cells, mend_outside_cells, outside_cells, verify
from harness.seals import sealed_text

CLOSE_SECONDS = 10.0
"""How long a process that is done waits for the folder, to add its seconds."""
BEGUN = ("command", "git", "threads", "packages", "python", "platform", "cpu", "cores", "memory_bytes", "gpu")
"""What of environment.json is that of the first process, where several are at work."""


@dataclass(frozen=True)
class Prepared:
    """A suite that passed every check against the run folder it is to fill. Nothing has been written yet."""

    suite: Suite
    checked: Checked
    plan: Plan
    identity: Identity
    folder: RunFolder
    reused: Mapping[str, Donor] = field(default_factory=dict)  # cell -> the run that it is copied, or begun, from
    share: str = ""  # the option by which this process is for a part of the cells, and which those are (None: all)
    chosen: frozenset[str] | None = None
    _found: dict[str, tuple[Any, list[str]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def mine(self) -> list[str]:
        """The cells that this process is for, in the plan's order."""
        return [cell.name for cell in self.plan.cells if self.chosen is None or cell.name in self.chosen]

    @property
    def copied(self) -> set[str]:
        """The cells that another run has as a whole, so that nothing of them is made here."""
        return {name for name, donor in self.reused.items() if donor.whole}

    @property
    def failures(self) -> dict[str, list[str]]:
        """Cell -> why it is not all there; no entry for a cell with nothing left to do."""
        found = {cell.name: self.failures_of(cell.name) for cell in self.plan.cells}
        return {name: reasons for name, reasons in found.items() if reasons}

    @property
    def damage(self) -> list[str]:
        """A sentence for every file of the folder that is not what was written; `run_suite` makes them again.

        Not of cells that another process is just running."""
        path, claims = self.folder.path, self.folder.claims
        if not (path / "environment.json").exists() and not (path / "cells").exists():
            return []
        found = verify(self.folder, thorough=False)
        if not found or not claims.others():
            return found
        running = tuple(f"cells/{cell.name}/" for cell in self.plan.cells if claims.holder(cell.name) is not None)
        return [line for line in found if not line.startswith(running)]

    def failures_of(self, cell: str) -> list[str]:
        """Why ``cell`` is not all there: a line per reason. What was found is kept until its cell.json is another."""
        folder = self.folder.cell(cell)
        mark = folder.end
        if cell not in self._found or self._found[cell][0] != mark:
            self._found[cell] = mark, folder.failures(self.suite.benchmarks, self.suite.judged_twice)
        return self._found[cell][1]


def prepare(
    suite_path: str | Path,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    donors: Sequence[str | Path] = (),
    *,
    on_paper: bool = False,
    answering: bool = True,
    only: Sequence[str] = (),
    shard: str | None = None,
) -> Prepared:
    """Load, check and plan; ``out`` is runs/<suite name> unless given. ``donors`` are runs to copy equal cells from.
    ``on_paper``: nothing is to be run, so neither devices nor weights need be here. ``answering`` is False where all
    answers are there, so that no engine is needed.

    ``only`` are the cells to run, by default all; or those of ``shard`` ("1/8"). Raises ValueError for everything that
    is wrong with the suite, its files or a run folder, before any work.
    """
    suite = load_suite(suite_path, overrides)
    checked = check_suite(suite, on_paper=on_paper, answering=answering)
    folder = RunFolder(out if out is not None else Path("runs") / suite.file.name)
    plan = make_plan(suite, folder.path)
    mine = share_of(plan, only, shard)
    share = f"--shard {shard}" if shard is not None else "--only" if only else ""
    check_bills(suite, plan.cells, checked.triples, folder.path)
    suite = replace(suite, benchmarks=without_left_out(suite.benchmarks, checked.left_out.benchmarks))
    identity = identify(suite, plan.cells, checked.triples, checked.left_out)
    _check_folder(folder, identity)
    others = [Donor(Path(path), identity) for path in donors]
    chosen = None if mine is None else frozenset(mine)
    return Prepared(suite, checked, plan, identity, folder, reusable(others, folder, plan), share, chosen)


def run_suite(
    prepared: Prepared,
    progress: Progress,
    work: Callable[[Sharing], object] | None = None,
    begin: Callable[[], object] = lambda: None,
) -> Mapping[str, list[str]]:
    """Run every cell of this process's share that is missing, failed or damaged; returns {cell: reasons} of those still
    not all there.

    ``work`` brings the cells that it is handed to their end; by default they are fitted, evaluated and judged. What is
    damaged is removed first, with what was made from it. A complete run is left untouched. May be interrupted at any
    moment: the next call goes on from the folder.

    Any number of processes may be in here with the same folder, on any hosts that share it: each cell is claimed by
    one of them, and all return when their share is over. ``begin`` is called before, while nobody else is in there.
    """
    folder, start = prepared.folder, time.monotonic()
    files = {one.name: one.files for one in prepared.plan.benchmarks}
    how = {"lacking": prepared.failures_of, "donors": prepared.reused, "files": files, "progress": progress}
    cells = Sharing(folder, prepared.mine, **how)
    try:
        with folder.opened():
            _open(prepared, cells)
            if cells:
                begin()
                folder.claims.enter(prepared.share)
        while cells.more():
            (work or partial(_run, prepared))(cells)
    finally:
        _close(folder, time.monotonic() - start)
    found = {name: prepared.failures_of(name) for name in cells.names}
    return {name: reasons for name, reasons in found.items() if reasons}


def _run(prepared: Prepared, cells: Sharing) -> None:
    run_cells(prepared.folder.path, cells, prepared.suite.file.execution, cells)


def _open(prepared: Prepared, cells: Sharing) -> None:
    """Write what the run is, and mend what lies outside its cells; to be done while the folder is locked."""
    folder, suite, first = prepared.folder, prepared.suite, not prepared.folder.claims.others()
    if first:
        sweep_run(folder.path)
        folder.claims.clear()
    else:
        sweep_documents(folder.path)
    _check_folder(folder, prepared.identity)  # again, under the lock
    write_sealed(folder.path / "identity.json", prepared.identity)
    write_text(folder.path / "suite.yaml", sealed_text(suite.to_yaml(folder.path)))
    before = _read_if_whole(Plan, folder.path / "plan.json")
    plan = grown(prepared.plan, before, folder.path)
    if plan != before:
        plan.write(folder.path / "plan.json")
    left_out = folder.path / "left_out.json"
    if prepared.checked.left_out:
        prepared.checked.left_out.write(left_out)
    else:
        left_out.unlink(missing_ok=True)
    mended = first and mend_outside_cells(folder)
    described = _read_if_whole(Environment, folder.path / "environment.json")
    # Where something else was damaged there is still something to be described.
    if cells or before is None or described is None or mended:
        _describe(prepared, described, first=first)


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


def _describe(prepared: Prepared, before: Environment | None, *, first: bool) -> None:
    """Write environment.json, and let judges prepare themselves; ``before`` is what it held.

    Where and how a sitting was begun is that of its ``first`` process; others add their machines.
    """
    judges = _prepared_judges(prepared)
    for warning in (text for judge in judges.values() for text in judge.warnings):
        print(warning, file=sys.stderr)
    environment = _environment(prepared, judges, before.machines if before is not None else {})
    if before is not None:
        kept = ("created", "seconds") if first else ("created", "seconds", *BEGUN)
        environment = environment.model_copy(update={name: getattr(before, name) for name in kept})
    files = outside_cells(prepared.folder)
    environment.model_copy(update={"files": files}).write(prepared.folder.path / "environment.json")


def _close(folder: RunFolder, seconds: float) -> None:
    """Where this process was at work: leave the folder to others, with its ``seconds`` added to those of the run; the
    last one tidies up. Where another process holds the folder for long, the seconds are not added.
    """
    if not folder.claims.leave():
        return
    path = folder.path / "environment.json"
    with suppress(ValueError), folder.opened(wait=False, seconds=CLOSE_SECONDS):
        environment = _read_if_whole(Environment, path)
        if environment is not None:
            seconds = round(environment.seconds + seconds, 1)
            environment.model_copy(update={"seconds": seconds, "files": outside_cells(folder)}).write(path)
        if not folder.claims.others():
            folder.claims.clear()


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


def _environment(prepared: Prepared, judges: Mapping[str, Judge], machines: Mapping[str, MachineEntry]) -> Environment:
    """environment.json as it is now; what ``judges`` say of themselves (a reward model's accuracy) is in it.

    ``machines`` are those that worked at the run before.
    """
    suite, file, triples = prepared.suite, prepared.suite.file, prepared.checked.triples
    here = machine()
    machines = {**machines, gethostname(): MachineEntry(**here)}

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
            **here,
            "machines": machines,
            "threads": file.execution.threads,
            "packages": package_versions(),
            "judge": None,
            **described,
            "engine": suite.engine and suite.engine.label,
            "notes": [
                *([] if suite.engine is None else [suite.engine.statement]),
                *map(discreet, prepared.checked.notes),
                *_machines_note(machines),
                *(note for benchmark in suite.benchmarks.values() for note in benchmark.notes),
            ],
            "base": entry(file.base, hash=base_identity(file.base)),
            "saes": {name: entry(ref, hash=sae_hash(ref)) for name, ref in file.saes.items()},
            "triples": entry(file.triples, n=len(triples), hash=triples_hash(triples)),
        }
    )


def _machines_note(machines: Mapping[str, MachineEntry]) -> Iterator[str]:
    """What a report says of a run that several kinds of machines worked at; their names are nobody's business."""
    kinds = Counter(f"{one.cores} cores of {one.cpu}, {one.gpu or 'no GPU'}" for one in machines.values())
    if len(kinds) > 1:
        told = "; ".join(f"{count} with {kind}" for kind, count in kinds.items())
        yield f"Cells were run on machines of {len(kinds)} kinds ({told}): FLOPs compare, seconds and bytes do not."
