"""A finished run judged again by another judge: its fits and answers are copied, no model is loaded."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ValidationError

from harness.experiment.cell import Failures, evaluate
from harness.experiment.executors import Progress
from harness.experiment.forecast import Forecaster
from harness.experiment.kept import Kept
from harness.experiment.plan import decisive_settings, derive_seed
from harness.experiment.run import Prepared, prepare, run_suite
from harness.experiment.sections import LONGEST
from harness.experiment.sharing import Sharing
from harness.experiment.source import Source, describe, dotted, set_value, split_override
from harness.experiment.suite import Suite, as_given, dumped, load_suite
from harness.files import check_can_make
from harness.judging import JUDGES, Judge
from harness.model.artifact import read_description
from harness.plugins import alike, load_plugins
from harness.provenance import code_commit
from harness.run_folder.adoption import adopt_answers
from harness.run_folder.cell import CellFolder
from harness.run_folder.layout import RunFolder
from harness.run_folder.verify import opened


@dataclass(frozen=True)
class Rejudging:
    """A run that can be judged again, and what comes of it. Nothing has been written yet.

    ``judged`` are the benchmarks that the new judge is asked about, ``left_out`` says of cells why they cannot be.
    """

    source: RunFolder
    prepared: Prepared
    judged: tuple[str, ...]
    left_out: dict[str, str]

    @classmethod
    def of(
        cls,
        run: Path,
        judge: str,
        settings: Sequence[str] = (),
        *,
        benchmarks: Sequence[str] = (),
        out: Path | None = None,
        max_cost: float | None = None,
    ) -> "Rejudging":
        """``judge`` is a kind of judge or a YAML file, ``settings`` are ``judge.KEY=VALUE``.

        ``benchmarks`` are those to be judged, by default all that were. ``out`` is by default beside the run, called
        after the judge. Raises ValueError, before any work, for everything that is wrong with run, judge and folder.
        """
        source = opened(run)
        suite = load_suite(source.path / "suite.yaml")
        section = read_judge(judge, settings, source.path)
        if max_cost is not None:
            if "max_cost" not in JUDGES[section["kind"]].model_fields:  # type: ignore[attr-defined]
                raise ValueError(f"--max-cost: judge {section['kind']!r} costs nothing; leave it out")
            section["max_cost"] = max_cost
        judged = _judged(suite, benchmarks, source)
        kept = [name for name, one in suite.benchmarks.items() if not one.needs_judge or name in judged]
        data: dict[str, Any] = yaml.safe_load((source.path / "suite.yaml").read_text("utf-8"))
        entries = [entry for entry in data["benchmarks"] if (entry.get("as") or entry["name"]) in kept]
        overrides = [f"judge={json.dumps(section)}", "second_judge=null"]
        if len(entries) < len(data["benchmarks"]):
            overrides.append(f"benchmarks={json.dumps(entries)}")
        if suite.file.execution.device.startswith("cuda") and not torch.cuda.is_available():
            overrides.append("execution.device=cpu")  # nothing is computed on it
        new = load_suite(source.path / "suite.yaml", overrides).judge
        assert new is not None
        _check_other(suite.judge, new)
        _check_verbs(suite, judged, new)
        # A suite's name has a longest length; a label's end, its hash, tells judges apart.
        label = re.sub(r"[^A-Za-z0-9.-]+", "-", new.label)[-LONGEST // 2 :].strip("-.")
        name = f"{suite.file.name[: LONGEST - len(label) - 4].rstrip('_.-')}-by-{label}"
        folder = source.path.resolve().parent / name if out is None else out
        if folder.resolve() == source.path.resolve():
            raise ValueError(f"--out {str(folder)!r} is the run itself; give another folder")
        check_can_make(folder)
        here = [*overrides, f"name={name}", "execution.executor=local"]
        prepared = prepare(source.path / "suite.yaml", folder, here, answering=False)
        planned = {cell.name for cell in source.plan.cells}
        left_out = {
            cell.name: reason if cell.name in planned else "not in the run"
            for cell in prepared.plan.cells
            if (reason := _lacking(source.cell(cell.name), judged)) is not None
        }
        cells = tuple(cell for cell in prepared.plan.cells if cell.name not in left_out)
        if not cells:
            reasons = "".join(f"\n  {cell}: {reason}" for cell, reason in list(left_out.items())[:10])
            raise ValueError(f"no cell of {str(run)!r} can be judged again:{reasons}\nfinish the run first")
        notes = (*_notes(source, suite, new, judged, left_out), *prepared.checked.notes)
        prepared = replace(
            prepared,
            plan=prepared.plan.model_copy(update={"cells": cells}),
            checked=replace(prepared.checked, notes=notes),
        )
        return cls(source, prepared, tuple(judged), left_out)

    def run(self, progress: Progress) -> Mapping[str, list[str]]:
        """Judge what is not judged yet; returns {cell: reasons} of those still not all there. May be interrupted: the
        next call goes on, and asks for no verdict that is there."""
        return run_suite(self.prepared, progress, self._judge, self._begin)

    def _begin(self) -> None:
        folder, replies = self.prepared.folder, "replies.jsonl"
        if (self.source.judging / replies).is_file() and not (folder.judging / replies).exists():
            # What this judge said before, as the run's second judge or in its tuning, need not be asked again.
            folder.judging.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.source.judging / replies, folder.judging / replies)

    def _judge(self, cells: Sharing) -> None:
        suite, folder = self.prepared.suite, self.prepared.folder
        assert suite.judge is not None
        judge, base = suite.judge.at(folder.judging), Forecaster(suite.file.base).fingerprint
        seeds = {cell.name: cell.seed for cell in self.prepared.plan.cells}
        (folder.path / "cells").mkdir(exist_ok=True)
        # The old judge's verdicts stay behind, also on what is not judged now: the next command may ask for it.
        judged = {
            one.name: one.files
            for one in self.source.plan.benchmarks
            if one.name in self.judged or one.name not in suite.benchmarks
        }
        for name in cells:
            cell, other = folder.cell(name), self.source.cell(name)
            if not self._is_copied(cell):
                shutil.rmtree(cell.path, ignore_errors=True)
                adopt_answers(cell, other, judged)
            with cell.log.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
                self._judge_cell(cell, other, judge, base, seeds[name], cells)
            cells.over(name)

    def _is_copied(self, cell: CellFolder) -> bool:
        """Whether all is there that judging takes from the source; what was found damaged has been removed."""
        unjudged = [name for name in self.prepared.suite.benchmarks if name not in self.judged]
        answered = [cell.path / "answers" / f"{name}.jsonl" for name in self.judged]
        fit = cell.artifact / "aligned.json"
        return all(path.is_file() for path in (fit, *answered)) and all(map(cell.has_records, unjudged))

    def _judge_cell(
        self, cell: CellFolder, other: CellFolder, judge: Judge, base: str, repeat: int, progress: Progress
    ) -> None:
        suite, state, failures = self.prepared.suite, other.state, Failures()
        assert state is not None
        cell.reopen()
        described = read_description(cell.artifact)
        for name in self.judged:
            if cell.settled(name):
                continue
            kept = Kept(described["method"], described["fingerprint"], base, other.diagnostics(name))
            work = partial(
                evaluate,
                kept,
                name,
                suite.benchmarks[name],
                judge=judge,
                seed=derive_seed(suite.file.seed, str(repeat), name),
                folder=cell,
                notify=partial(progress.stage, cell.path.name, name),
            )
            failures.attempt(name, work)
        made = {"status": "failed" if failures.errors else "done", "error": "; ".join(failures.errors) or None}
        made |= {"second_judge_error": None, "commit": code_commit(), "host": gethostname()}
        made |= {"origin": state.origin or self.source.plan.name}
        cell.finish(state.model_copy(update=made), "\n".join(failures.tracebacks) or None)


def read_judge(judge: str, settings: Sequence[str], home: Path) -> dict[str, Any]:
    """The section ``judge:`` of a suite in the folder ``home``, from a kind's name or a YAML file.

    The file holds ``kind`` and settings, or a key ``judge`` with them, as a suite does. ``settings`` are
    ``judge.KEY=VALUE`` and win. Relative paths start at the file's folder, beside a kind's name at the working folder.
    """
    load_plugins()
    path = Path(judge)
    if path.is_file():
        source = Source(path)
        given = source.data.get("judge", source.data)
        if not isinstance(given, dict) or not isinstance(given.get("kind"), str):
            raise ValueError(f"{path}: give `kind:` and its settings, or a suite that has `judge:`")
        folder = path.parent
    elif judge in JUDGES:
        given, folder = {"kind": judge}, Path()
    else:
        raise ValueError(
            f"--judge {judge!r} is neither a file nor a kind of judge; known: {', '.join(JUDGES)}{alike(judge, JUDGES)}"
        )
    data = {"judge": dict(given)}
    for one in settings:
        names, value = split_override(one)
        if names[0] != "judge" or len(names) < 2 or names[1] == "kind":
            raise ValueError(f"--set {one}: only settings of the judge can be given here, as judge.KEY=VALUE")
        set_value(data, names, value, f"--set {one}")
    kind, own = data["judge"]["kind"], {key: value for key, value in data["judge"].items() if key != "kind"}
    cls: type[BaseModel] = JUDGES[kind]  # type: ignore[assignment]
    try:
        made = cls.model_validate(own, context={"folder": folder.absolute()})
    except ValidationError as problem:
        where = str(path) if path.is_file() else f"--judge {judge}"
        raise describe(problem, cls, lambda key, text: ValueError(f"{where}: {dotted(key)}: {text}")) from None
    return {"kind": kind, **as_given(own, dumped(made, home))}


def _judged(suite: Suite, wanted: Sequence[str], run: RunFolder) -> list[str]:
    known = [name for name, benchmark in suite.benchmarks.items() if benchmark.needs_judge]
    if not known:
        raise ValueError(f"no benchmark of {str(run.path)!r} needs a judge, so there is nothing to judge again")
    for name in wanted:
        if name not in known:
            raise ValueError(f"--benchmark {name!r} is none that a judge judged; those are: {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def _check_other(old: Judge | None, new: Judge) -> None:
    if type(old) is type(new) and decisive_settings(old) == decisive_settings(new):
        raise ValueError(f"{new.label} is the judge that judged this run; give another")


def _check_verbs(suite: Suite, judged: Sequence[str], new: Judge) -> None:
    asks = {name: sorted(suite.benchmarks[name].asks - new.verbs) for name in judged}
    if unable := {name: verbs for name, verbs in asks.items() if verbs}:
        told = "; ".join(f"{name} asks for {' and '.join(verbs)}" for name, verbs in unable.items())
        able = " ".join(f"--benchmark {name}" for name in judged if name not in unable)
        text = f"give {able}" if able else "give another judge"
        raise ValueError(f"judge {new.name!r} cannot judge everything here: {told}; {text}")


def _lacking(cell: CellFolder, judged: Sequence[str]) -> str | None:
    """Why ``cell`` has nothing to judge; None where every answer that its records name is there."""
    state = cell.state
    if state is None:
        return "not run to its end"
    if state.error is not None:
        return state.error
    for name in judged:
        keys = [key for record in cell.records(name) or () for key in _keys(record.raw)]
        store = cell.answers(name)
        if not keys or any(store.get(key) is None for key in keys):
            return f"{name}: not all answers are kept"
    return None


def _keys(raw: Mapping[str, Any]) -> Iterator[str]:
    return (raw[name] for name in ("answer_key", "baseline_answer_key") if raw.get(name) is not None)


def _notes(
    source: RunFolder, suite: Suite, new: Judge, judged: Sequence[str], left_out: Mapping[str, str]
) -> Iterator[str]:
    old = "no judge" if suite.judge is None else suite.judge.label
    made = source.environment.created[:10]
    yield (
        f"Judged again: fits and answers are those of the run {source.plan.name} of {made} (hash "
        f"{source.environment.suite_hash[:12]}), which {old} judged; the verdicts on {', '.join(judged)} here are "
        f"{new.label}'s."
    )
    tuned = any(variant.space is not None for variant in suite.variants) and suite.file.tune.score == "judge"
    if tuned:
        yield f"Tuned variants were chosen by the verdicts of {old}, not by those of {new.label}."
    if left_out:
        yield f"{len(left_out)} cells of that run could not be judged again: {', '.join(left_out)}."
