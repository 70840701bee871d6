"""Finished runs that start from the same things become one run, whose report compares all of their variants."""

import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from harness.discretion import discreet
from harness.experiment.parts import Part, check_alike, name_apart
from harness.experiment.plan import Identity, identity_hash
from harness.experiment.suite import load_suite
from harness.files import atomic_folder, check_can_make, write_sealed, write_text
from harness.provenance import git_state
from harness.references import relative_to, starting_at, with_paths
from harness.run_folder.adoption import adopt
from harness.run_folder.cell import CellFolder
from harness.run_folder.layout import RunFolder
from harness.run_folder.left_out import LeftOut
from harness.run_folder.plan import Environment, Plan, PlannedCell, PlannedVariant, budget_order, cell_name, point_name
from harness.run_folder.verify import comparison, outside_cells
from harness.seals import sealed_text

_MACHINE = ("cpu", "cores", "gpu", "platform", "threads", "python", "packages")


@dataclass(frozen=True)
class Merged:
    """Runs that were found to be comparable. Nothing has been written yet.

    ``second`` are the benchmarks that the same second judge judged in all of them, ``benchmarks`` those that all have.
    """

    parts: tuple[Part, ...]
    out: Path
    baseline: str
    benchmarks: tuple[str, ...]
    second: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[str], out: Path, baseline: str | None = None) -> "Merged":
        """``runs`` are RUN or LABEL=RUN, ``out`` is the folder to be.

        Raises ValueError for folders that are no runs or damaged, for runs that are not comparable (with what differs
        in which), and for an ``out`` that is there and holds anything that could not be copied again.
        """
        if len(runs) < 2:
            raise ValueError("give two runs or more: dspa-bench compare RUN RUN ... --out FOLDER")
        parts = tuple(Part.open(given, out) for given in runs)
        places = [part.run.path.resolve() for part in parts]
        for index, place in enumerate(places):
            if place in places[:index]:
                raise ValueError(f"{parts[index].path} is given twice")
            if place == out.resolve():
                raise ValueError(f"--out {str(out)!r} is one of the runs; choose another folder")
        check_alike(parts)
        name_apart(parts)
        first = parts[0]
        benchmarks = [name for name in first.plan.benchmark_names if all(name in p.plan.benchmark_names for p in parts)]
        if not benchmarks:
            has = "".join(f"\n  {part.path}: {', '.join(part.plan.benchmark_names)}" for part in parts)
            raise ValueError(f"no benchmark is in all of these runs, so nothing can be compared:{has}")
        judges = [part.identity.get("second_judge") for part in parts]
        same = judges[0] is not None and all(judge == judges[0] for judge in judges)
        second = [name for name in benchmarks if same and all(name in part.plan.judged_twice for part in parts)]
        labels = dict.fromkeys(name for part in parts for name in part.variants.values())
        if baseline is not None and baseline not in labels:
            raise ValueError(f"no variant is called {baseline!r}; the runs have: {', '.join(labels)}")
        merged = cls(parts, out, baseline or first.variants[first.plan.baseline], tuple(benchmarks), tuple(second))
        _check_out(out, merged.cells)
        return merged

    @property
    def name(self) -> str:
        """The names of the suites, each once."""
        return "-and-".join(dict.fromkeys(part.plan.name for part in self.parts))

    @cached_property
    def cells(self) -> dict[str, tuple[PlannedCell, CellFolder, str]]:
        """Name -> what is planned, where it lies, what its run is called; of equal ones the first that is complete."""
        found: dict[str, tuple[PlannedCell, CellFolder, str]] = {}
        for part in self.parts:
            for planned in part.plan.cells:
                new = self._planned(part, planned)
                cell = part.run.cell(planned.name)
                if new.name not in found or (self._missing(found[new.name][1]) and not self._missing(cell)):
                    found[new.name] = new, cell, self._run_name(part)
        return found

    def _missing(self, cell: CellFolder) -> list[str]:
        return cell.failures(self.benchmarks, self.second)

    def _planned(self, part: Part, cell: PlannedCell) -> PlannedCell:
        variant = part.variants[cell.variant]
        return cell.model_copy(
            update={
                "name": cell_name(variant, cell.budget, cell.seed, cell.sweep),
                "variant": variant,
                "label": _label(part, cell.variant, cell.label),
                "params": part.renamed(cell.params),
            }
        )

    @property
    def variants(self) -> dict[str, PlannedVariant]:
        """Those of all runs, in their order, each once."""
        found: dict[str, PlannedVariant] = {}
        for part in self.parts:
            for variant in part.plan.variants:
                changes = {"name": part.variants[variant.name], "label": _label(part, variant.name, variant.label)}
                changes["settings"] = part.renamed(variant.settings)
                found.setdefault(changes["name"], variant.model_copy(update=changes))
        return found

    @cached_property
    def plan(self) -> Plan:
        plans, cells = [part.plan for part in self.parts], self.cells
        budgets = {budget for plan in plans for budget in plan.budgets}
        return plans[0].model_copy(
            update={
                "name": self.name,
                "baseline": self.baseline,
                "budgets": tuple(sorted(budgets, key=budget_order)),
                "seeds": max(plan.seeds for plan in plans),
                "variants": tuple(self.variants.values()),
                "benchmarks": tuple(
                    one.model_copy(update={"judged_twice": one.name in self.second})
                    for one in plans[0].benchmarks
                    if one.name in self.benchmarks
                ),
                "diagnostics": {name: text for plan in plans for name, text in plan.diagnostics.items()},
                "cells": tuple(
                    sorted((cell for cell, _, _ in cells.values()), key=lambda c: budget_order(c.budget), reverse=True)
                ),
            }
        )

    @property
    def suite(self) -> dict[str, Any]:
        """One suite of all their variants, budgets, seeds and SAEs; the rest is the first's.

        A suite has one way of tuning: variants that were tuned in another stand there without any, and as the identity
        knows better, `run` will not go on with them.
        """
        documents = [yaml.safe_load(part.suite.to_yaml(self.out)) for part in self.parts]
        found: dict[str, Any] = {**documents[0], "name": self.name, "seeds": max(d.get("seeds", 1) for d in documents)}
        for key in ("budgets", "flops_budgets", "plugins"):
            values = list(dict.fromkeys(value for document in documents for value in document.get(key, ())))
            found |= {key: values} if values else {}
        entries: dict[str, Any] = {}
        for part, document in zip(self.parts, documents, strict=True):
            for name, ref in (document.get("saes") or {}).items():
                found.setdefault("saes", {}).setdefault(part.saes.get(name, name), ref)
            for entry in document["variants"]:
                new = part.variants[entry["name"]]
                renamed = {key: part.renamed(entry[key]) for key in ("params", "sweep", "tune") if key in entry}
                shown = {"label": _label(part, entry["name"], entry.get("label", entry["name"]))}
                changes = {**renamed, **(shown if new != entry["name"] else {}), "name": new}
                left = () if part.suite.file.tune == self.parts[0].suite.file.tune else ("tune", "trials")
                kept = {key: value for key, value in {**entry, **changes}.items() if key not in left}
                there = entries.setdefault(new, kept)
                if len(there.get("sweep") or {}) == 1 and (there["sweep"]).keys() == (entry.get("sweep") or {}).keys():
                    ((key, values),) = there["sweep"].items()
                    there["sweep"] = {key: list(dict.fromkeys([*values, *renamed["sweep"][key]]))}
        found["variants"] = list(entries.values())
        found["benchmarks"] = [b for b in found["benchmarks"] if (b.get("as") or b["name"]) in self.benchmarks]
        found["report"] = {**found.get("report", {}), "baseline": self.baseline}
        second = found.pop("second_judge", None)
        if self.second:
            found["second_judge"] = {**second, "benchmarks": list(self.second)}
        return found

    @property
    def identity(self) -> Identity:
        """What the results of all of them depend on, as one suite's."""
        first = self.parts[0].identity
        saes = {
            part.saes.get(name, name): content
            for part in self.parts
            for name, content in part.identity["suite"]["saes"].items()
        }
        found: Identity = {"suite": {**first["suite"], "name": self.name, "saes": saes}}
        if self.second:
            found["second_judge"] = first["second_judge"]
        kept = [f"{kind}.{name}" for name in self.benchmarks for kind in ("benchmarks", "left_out")]
        found |= {unit: first[unit] for unit in kept if unit in first}
        for part in self.parts:
            for variant, units in part.units.items():
                for unit in units:
                    swept = unit.removeprefix(f"variants.{variant}")
                    found.setdefault(f"variants.{part.variants[variant]}{swept}", part.renamed(part.identity[unit]))
        return found | {f"cells.{cell.name}": {} for cell, _, _ in self.cells.values() if cell.sweep is None}

    @property
    def notes(self) -> list[str]:
        """What a reader of the report has to know, beside what the runs say themselves."""
        whole, cells = self.plan, [cell for cell, _, _ in self.cells.values() if not cell.sweep]
        told = [
            f"{self._run_name(part)} ({len(part.plan.cells)} cells, {part.run.environment.created[:10]})"
            for part in self.parts
        ]
        found = [f"This compares cells of {len(self.parts)} runs: {', '.join(told)}."]
        renamed = [f"{new} is {old} of {self._run_name(p)}" for p in self.parts for old, new in _renamed(p)]
        if renamed:
            found.append(f"Of the same name, and not the same: {'; '.join(renamed)}.")
        planned = sum(whole.seeds * (len(whole.budgets) if v.uses_triples else 1) for v in whole.variants)
        if len(cells) < planned:
            found.append(
                f"{planned - len(cells)} of {planned} combinations of variant, budget and seed are in none of them."
            )
        every = dict.fromkeys(name for part in self.parts for name in part.plan.benchmark_names)
        if lacking := [name for name in every if name not in self.benchmarks]:
            found.append(f"Left out, because not every run has it: {', '.join(lacking)}.")
        judged = {name for part in self.parts for name in part.plan.judged_twice if name in self.benchmarks}
        if judged - {*self.second}:
            found.append("Second judges' verdicts are left out where not all runs have the same.")
        machines = [part.run.environment.model_dump(include=set(_MACHINE)) for part in self.parts]
        if differing := [key for key in _MACHINE if any(one[key] != machines[0][key] for one in machines)]:
            found.append(
                f"The runs were made on different machines or installations ({', '.join(differing)} differ; shown are "
                f"those of {self._run_name(self.parts[0])}): FLOPs compare, seconds and bytes may not."
            )
        return found

    def write(self) -> RunFolder:
        """Make the folder, complete or not at all; cells are copied, files of weights linked where that is possible."""
        with atomic_folder(self.out, replace=True) as folder:
            run = RunFolder(folder)
            (folder / "cells").mkdir()
            for cell, source, origin in self.cells.values():
                if source.state is not None:
                    adopt(run.cell(cell.name), source, origin)
            write_text(folder / "suite.yaml", sealed_text(yaml.safe_dump(self.suite, sort_keys=False)))
            known = {f"variants.{name}" for name in _points(folder / "suite.yaml")}
            # Points of a sweep that no one suite can plan are in the plan, and no part of what `run` would go on with.
            identity = {u: v for u, v in self.identity.items() if not u.startswith("variants.") or u in known}
            write_sealed(folder / "identity.json", identity)
            self.plan.write(folder / "plan.json")
            if left_out := next((part.run.left_out for part in self.parts if part.run.left_out), None):
                kept = {name: items for name, items in left_out.benchmarks.items() if name in self.benchmarks}
                LeftOut(context=left_out.context, triples=left_out.triples, benchmarks=kept).write(
                    folder / "left_out.json"
                )
            for name, lines in self._journals().items():
                write_text(run.judging / name, "".join(lines))
            environment = self._environment(identity)
            environment.model_copy(update={"files": outside_cells(run)}).write(folder / "environment.json")
        return RunFolder.open(self.out)

    def _journals(self) -> dict[str, list[str]]:
        """Ledger and replies: the lines of all runs; what one was given by another is there once."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            for path in sorted(part.run.judging.glob("*.jsonl")):
                lines = found.setdefault(path.name, [])
                before = set(lines)
                lines += [line for line in path.read_text("ascii").splitlines(keepends=True) if line not in before]
        return found

    def _environment(self, identity: Identity) -> Environment:
        def moved(part: Part, entry: Any) -> Any:
            there, here = starting_at(part.run.path), relative_to(self.out)
            return with_paths(entry.model_dump(), lambda path: here(there(path)))

        first = self.parts[0]
        environments = [part.run.environment for part in self.parts]
        notes = [*self.notes, *(note for environment in environments for note in environment.notes)]
        triples = environments[0].triples.model_dump()
        triples["path"] = relative_to(self.out)(starting_at(first.run.path)(triples["path"]))
        return Environment.model_validate(
            environments[0].model_dump(exclude={"second_judge", "files"})
            | {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": discreet(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
                "suite_hash": identity_hash(identity),
                "git": git_state(),
                "second_judge": environments[0].second_judge if self.second else None,
                "notes": tuple(dict.fromkeys(notes)),
                "base": moved(first, environments[0].base),
                "saes": {
                    part.saes.get(name, name): moved(part, sae)
                    for part in reversed(self.parts)
                    for name, sae in part.run.environment.saes.items()
                },
                "triples": triples,
                "seconds": 0.0,
                "compared": [self._run_name(part) for part in self.parts],
            }
        )

    def _run_name(self, part: Part) -> str:
        """What a reader calls it: its suite, and its folder where others have that name too."""
        alike = sum(one.plan.name == part.plan.name for one in self.parts) > 1
        return f"{part.plan.name} in {part.run.path.name}" if alike else part.plan.name


def _renamed(part: Part) -> Iterator[tuple[str, str]]:
    names: Mapping[str, str] = {**part.variants, **part.saes}
    return ((old, new) for old, new in names.items() if old != new)


def _label(part: Part, variant: str, label: str) -> str:
    return label if part.variants[variant] == variant else f"{label} ({part.label})"


def _points(suite: Path) -> Iterator[str]:
    """Names of the variants and points of sweeps that a suite has."""

    for variant in load_suite(suite).variants:
        yield from (point_name(variant.name, values) for values in (None, *(values for values, _ in variant.points)))


def _check_out(out: Path, cells: Collection[str]) -> None:
    """A folder that is there must be one that can be made again: a comparison, without a cell of its own.

    It may be damaged: ``cells``, which are copied anew, need not be readable.
    """
    if not out.exists():
        check_can_make(out)
        return
    if not (out / "environment.json").is_file():
        raise ValueError(f"--out {str(out)!r} is there, and is no comparison of runs; choose a new folder")

    def is_own(cell: CellFolder) -> bool:
        try:
            return cell.state is not None and cell.state.origin is None
        except ValueError:
            return cell.path.name not in cells

    there = RunFolder(out)
    if comparison(there) is None or any(map(is_own, map(CellFolder, (out / "cells").glob("[!.]*")))):
        raise ValueError(
            f"--out {str(out)!r} is a run with cells of its own, which would be lost; choose a new folder (and give "
            "this one as a run where its cells are to be compared)"
        )
