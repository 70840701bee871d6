"""Runs that are to become one: whether they start from the same things, and what their variants and SAEs are called."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.experiment.plan import Identity, differences, make_plan
from harness.experiment.reuse import identity_of, same_made, start_of
from harness.experiment.suite import Suite, load_suite
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import Plan
from harness.run_folder.verify import opened

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclass(frozen=True)
class Part:
    """A run, whose plan has paths relative to the folder of the whole; ``label`` is None where it was given none.

    ``variants`` and ``saes`` say what those are called in the whole that cannot keep their names.
    """

    run: RunFolder
    label: str | None
    suite: Suite
    identity: Identity
    plan: Plan
    variants: dict[str, str] = field(default_factory=dict)
    saes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, given: str, whole: Path) -> "Part":
        """The run that a user gives as ``RUN`` or ``LABEL=RUN``; ValueError for a folder that is none, or damaged."""
        label, equals, folder = given.partition("=")
        if not equals or Path(given).is_dir():
            label, folder = None, given
        elif not _LABEL.fullmatch(label):
            raise ValueError(f"{given!r}: {label!r} cannot be a label: letters, digits, '.' and '-'")
        run = opened(Path(folder))
        suite = load_suite(run.path / "suite.yaml")
        plan, planned = make_plan(suite, whole), {cell.name for cell in run.plan.cells}
        here = {cell.name for cell in plan.cells}
        # Of cells that a grown suite no longer plans there is only what the folder's own plan says.
        cells = [cell for cell in plan.cells if cell.name in planned]
        cells += [cell for cell in run.plan.cells if cell.name not in here]
        return cls(run, label, suite, identity_of(run.path), plan.model_copy(update={"cells": tuple(cells)}))

    @property
    def path(self) -> str:
        return str(self.run.path)

    @cached_property
    def units(self) -> dict[str, list[str]]:
        """Variant -> the units of the identity that it and the points of its sweep are."""
        names = {variant: f"variants.{variant}" for variant in self.plan.labels}
        return {
            variant: [unit for unit in self.identity if unit == name or unit.startswith(f"{name}@")]
            for variant, name in names.items()
        }

    def renamed(self, value: Any) -> Any:
        """Settings with the names of SAEs in it as the whole has them."""
        if isinstance(value, str):
            return self.saes.get(value, value)
        if isinstance(value, Mapping):
            return {key: self.renamed(item) for key, item in value.items()}
        return [self.renamed(item) for item in value] if isinstance(value, list) else value


def check_alike(parts: Sequence[Part]) -> None:
    """Raise ValueError, with every difference and the runs that it is between, unless all start from the same things
    and measure by the same settings what more than one of them measures."""
    found = []
    for index, part in enumerate(parts):
        for other in parts[:index]:
            shared = [name for name in other.plan.benchmark_names if name in part.plan.benchmark_names]
            units = [f"{kind}.{name}" for name in shared for kind in ("benchmarks", "left_out")]
            sides = [
                {"suite": start_of(one.identity), **{name: one.identity.get(name, {}) for name in units}}
                for one in (other, part)
            ]
            found += differences(*sides, whose=(f"in {other.path}", f"in {part.path}"))
            if found:
                break
    if not found:
        return
    more = ""
    if any(line.startswith("suite.judge") for line in found):
        more = "\njudge the answers of one run again by the other's judge: dspa-bench rejudge RUN --judge JUDGE"
    raise ValueError(
        f"these runs are not comparable; they differ in more than their variants:{_listed(found)}\n"
        f"only runs of one base, seed, triples, judge and the same benchmark settings can be one report{more}"
    )


def name_apart(parts: Sequence[Part]) -> None:
    """Fill `Part.variants` and `Part.saes`: the same name and content is one, other content needs the run's label.

    Runs without a label keep their names, and the first of those that have one where there are no others. Raises
    ValueError, with what differs, for runs without a label that would need one.
    """
    parts = sorted(parts, key=lambda part: part.label is not None)
    owners: dict[str, tuple[Part, str]] = {}
    saes: dict[str, str] = {}
    found = []
    for part in parts:
        for name, content in part.identity["suite"]["saes"].items():
            if saes.setdefault(name, content) == content:
                continue
            first = next(one for one in parts if name in one.identity["suite"]["saes"])
            if part.label is None:
                whose = f"in {first.path}", f"in {part.path}"
                units = [{"suite": {"saes": {name: one.identity["suite"]["saes"][name]}}} for one in (first, part)]
                found += differences(*units, whose=whose)
            else:
                part.saes[name] = f"{part.label}.{name}"
                saes[part.saes[name]] = content
        for variant in part.plan.labels:
            namesakes = {new: other for new, (other, its) in owners.items() if its == variant}
            same = [new for new, other in namesakes.items() if _same(other, part, variant)]
            if same or not namesakes:
                new = same[0] if same else variant
            elif part.label is None:
                other = next(iter(namesakes.values()))
                found += _contrast(other, part, variant)
                continue
            else:
                new = f"{part.label}.{variant}"
            if new in owners and not same:
                raise ValueError(f"{part.path}: a variant is called {new!r} already; give another label")
            part.variants[variant] = new
            owners.setdefault(new, (part, variant))
    if found:
        raise ValueError(
            f"what has the same name is not the same:{_listed(found)}\n"
            "give a run a label, which goes before those names: dspa-bench compare RUN LABEL=RUN ..."
        )


def _same(other: Part, part: Part, variant: str) -> bool:
    shared = [unit for unit in part.units[variant] if unit in other.identity]
    return all(same_made(unit, other.identity, part.identity) for unit in shared)


def _contrast(other: Part, part: Part, variant: str) -> list[str]:
    shared = [unit for unit in part.units[variant] if unit in other.identity]
    sides = [{unit: one.identity[unit] for unit in shared} for one in (other, part)]
    return differences(*sides, whose=(f"in {other.path}", f"in {part.path}"))


def _listed(lines: Sequence[str]) -> str:
    more = f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
    return "".join(f"\n  {line}" for line in lines[:20]) + more
