"""The plan of a suite: which cells it consists of, what each is given, and what the results depend on, by content."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.refs import SAERef
from harness.data.triples import Budget, Triple, draw_budget, triples_hash, with_preferences
from harness.experiment.space import Choices
from harness.experiment.suite import Suite, Variant, as_given, dumped, moved_values
from harness.files import folder_hash
from harness.model.base import base_identity
from harness.run_folder.left_out import LeftOut
from harness.run_folder.plan import (
    BudgetName,
    Plan,
    PlannedBenchmark,
    PlannedCell,
    PlannedTuning,
    PlannedVariant,
    budget_order,
    cell_name,
    flops_budget,
    point_name,
)

Identity = dict[str, Any]
LONGEST_CELL = 200
"""Characters in a cell's name: file systems take 255 bytes, and what names a cell's files adds to it."""


def make_plan(suite: Suite, folder: Path) -> Plan:
    """The plan of ``suite`` for the run folder ``folder``, to which paths in it are relative.

    A variant is run at every budget with every seed; one that uses no triples once per seed, as budget 0. Sweep points
    are run at the largest budget with the first seed only (the largest number of triples, if any). Raises ValueError
    for two swept values that would share a name, or have one that is too long for a folder.
    """
    cells = [cell for variant in suite.variants for cell in _variant_cells(suite, variant, folder)]
    for name, count in Counter(cell.name for cell in cells).items():
        if count > 1:
            raise ValueError(f"two swept values would both be called {name!r}; change one of them")
        if len(name) > LONGEST_CELL:
            raise ValueError(
                f"a cell would be called {name[:60]!r}..., {len(name)} characters, and its folder cannot be: at most "
                f"{LONGEST_CELL}; give long values as variants of their own instead of a sweep, or shorter names"
            )
    return Plan(
        name=suite.file.name,
        baseline=suite.file.report.baseline or suite.variants[0].name,
        budgets=tuple(sorted(_budgets(suite), key=budget_order)),
        seeds=suite.file.seeds,
        seed=suite.file.seed,
        variants=tuple(
            PlannedVariant(
                name=variant.name,
                label=variant.label,
                method=variant.section.method,
                uses_triples=variant.method.uses_triples,
                settings=as_given(variant.section.params, dumped(variant.method, folder)),
                preferences=variant.section.preferences,
                tuning=_planned_tuning(suite, variant, folder),
            )
            for variant in suite.variants
        ),
        benchmarks=tuple(
            PlannedBenchmark(
                name=name,
                metrics=benchmark.columns(name),
                judged_twice=name in suite.judged_twice,
                files=benchmark.folder(name),
            )
            for name, benchmark in suite.benchmarks.items()
        ),
        diagnostics={name: text for _, method in suite.methods for name, text in method.diagnostics.items()},
        cells=tuple(sorted(cells, key=lambda cell: budget_order(cell.budget), reverse=True)),
    )


def grown(plan: Plan, before: Plan | None, folder: Path) -> Plan:
    """``plan`` with those cells of the run's plan ``before`` that it no longer has, where they were begun.

    There are such cells when a larger budget was added: sweep points are then planned at that one.
    """
    names = {cell.name for cell in plan.cells}
    others = [cell for cell in (before.cells if before is not None else ()) if cell.name not in names]
    begun = tuple(cell for cell in others if (folder / "cells" / cell.name).is_dir())
    return plan.model_copy(update={"cells": plan.cells + begun}) if begun else plan


def _planned_tuning(suite: Suite, variant: Variant, folder: Path) -> PlannedTuning | None:
    if variant.space is None:
        return None
    how = suite.file.tune.model_dump(include={"search", "score", "validation", "floor"})
    return PlannedTuning(**how, trials=variant.trials, space=moved_values(variant, folder))


def _budgets(suite: Suite) -> tuple[BudgetName, ...]:
    return (*suite.file.budgets, *map(flops_budget, suite.file.flops_budgets))


def _variant_cells(suite: Suite, variant: Variant, folder: Path) -> Iterator[PlannedCell]:
    budgets: tuple[BudgetName, ...] = _budgets(suite) if variant.method.uses_triples else (0,)
    runs = [(variant.method, budget, seed, None) for budget in budgets for seed in range(suite.file.seeds)]
    runs += [(method, max(budgets, key=budget_order), 0, values) for values, method in variant.points]
    for method, budget, seed, sweep in runs:
        yield PlannedCell(
            name=cell_name(variant.name, budget, seed, sweep),
            variant=variant.name,
            label=variant.label,
            method=variant.section.method,
            budget=budget,
            seed=seed,
            uses_triples=method.uses_triples,
            sweep=sweep,
            params=suite.params(variant, method, {"folder": folder}),
        )


def derive_seed(suite_seed: int, *names: str) -> int:
    """A seed in [0, 2**31) for the thing called ``names``, from the suite's one seed.

    It depends on nothing else, so adding a cell or a benchmark changes no other.
    """
    digest = hashlib.sha256("\x1f".join([str(suite_seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def cell_triples(suite: Suite, cell: PlannedCell, triples: Sequence[Triple]) -> Budget:
    """The triples ``cell`` may see: same subset, same order for every variant at its budget and seed.

    Where the budget is a bill, that is all of them, in the order that smaller subsets are cut from. A variant with
    other ``preferences`` than those given, a control, gets the same prompts and answers and is told otherwise which
    answers are chosen.
    """
    size = cell.budget if isinstance(cell.budget, int) else len(triples)
    drawn = draw_budget(triples, size, seed=suite.file.seed + cell.seed)
    preferences = suite.variant_of(cell).section.preferences
    seed = derive_seed(suite.file.seed, str(cell.seed), "preferences")
    return Budget(with_preferences(drawn.triples, preferences, seed), drawn.seed)


def identify(
    suite: Suite, cells: Sequence[PlannedCell], triples: Sequence[Triple], left_out: LeftOut | None = None
) -> Identity:
    """{unit: what it is} for the suite, each benchmark, each variant and sweep point, and each cell.

    Files stand for their content: a triples or question file that was edited since is a difference, one that
    was moved is not. How the work is done (``execution``, its engine apart) and shown (``report``, labels) is left out.
    ``left_out`` is what does not fit the context: a benchmark that leaves prompts out goes on without the same ones.
    """
    file = suite.file
    judges = {key: {"kind": judge.name, **decisive_settings(judge)} for key, judge in suite.judges.items()}
    units: Identity = {
        "suite": {
            "name": file.name,
            "seed": file.seed,
            "base": {**file.base.model_dump(include={"dtype", "chat"}), "content": base_identity(file.base)},
            "saes": {name: sae_hash(ref) or str(ref) for name, ref in file.saes.items()},
            "triples": triples_hash(triples),
            "judge": judges.get("judge"),
        }
    }
    if suite.engine is not None:
        units["suite"]["engine"] = {"kind": suite.engine.name, **decisive_settings(suite.engine)}
    if "second_judge" in judges:
        units["second_judge"] = judges["second_judge"]
    for name, benchmark in suite.benchmarks.items():
        settings = decisive_settings(benchmark)
        # Answers do not depend on the batch size, and running out of memory is a reason to change it.
        settings.pop("batch_size", None)
        # What does not fit is left out or refused; which items that are, `left_out` says.
        settings.pop("too_long", None)
        units[f"benchmarks.{name}"] = settings if name == benchmark.name else {"name": benchmark.name, **settings}
        if getattr(benchmark, "too_long", None) == "skip" and left_out is not None:
            names = [item.name for item in left_out.benchmarks.get(name, ())]
            units[f"left_out.{name}"] = {"prompts": names}
    for variant in suite.variants:
        for values, method in ((None, variant.method), *variant.points):
            params = suite.params(variant, method, {"contents": True})
            unit = {"method": variant.section.method, "params": params}
            if variant.section.preferences != "given":
                unit["preferences"] = variant.section.preferences
            if values is None and variant.space is not None:
                unit["tune"] = _tuning_identity(suite, variant)
            units[f"variants.{point_name(variant.name, values)}"] = unit
    for cell in cells:
        if cell.sweep is None:  # a larger budget moves a sweep to new cells; the old ones are still what they say
            units[f"cells.{cell.name}"] = {}
    return json.loads(json.dumps(units))


def _tuning_identity(suite: Suite, variant: Variant) -> dict[str, Any]:
    """What the outcome of a variant's tuning depends on; files that may be chosen stand for their content."""
    assert variant.space is not None
    space: dict[str, Any] = {}
    for name, dimension in variant.space.dimensions.items():
        methods = [method for key, method in variant.space.samples if key == name]
        values = [method.model_dump(mode="json", context={"contents": True})[name] for method in methods]
        space[name] = values if isinstance(dimension, Choices) else [*values, "log" if dimension.log else "linear"]
    how = suite.file.tune.model_dump(exclude={"trials"}) | {"trials": variant.trials}
    if how["score"] != "judge":
        del how["max_new_tokens"]
    return how | {"space": space}


def decisive_settings(thing: Any) -> dict[str, Any]:
    """All settings of a benchmark, judge or engine, defaults included, with contents in place of paths.

    Those that a judge or an engine calls operational change no verdict and no answer and are left out.
    """
    return thing.model_dump(mode="json", exclude=set(getattr(thing, "operational", ())), context={"contents": True})


def differences(there: Identity, here: Identity, *, whose: tuple[str, str] = ("there", "here")) -> list[str]:
    """How ``here`` contradicts an existing run's identity; more benchmarks, variants, cells, a second judge do not.

    Nor do more SAEs: no cell so far calls one by a name that was not there. ``whose`` is what the two are called.
    """
    found = []
    for unit, content in there.items():
        if unit in here:
            old, new = _flat(content), _flat(here[unit])
            more = {key for key in new.keys() - old.keys() if unit == "suite" and key.startswith("saes.")}
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in {*more, "saes"}]
            first, second = whose
            found += [f"{unit}.{key}: {_short(old.get(key))} {first}, {_short(new.get(key))} {second}" for key in keys]
        else:
            found.append(f"{unit}: there, not in this suite")
    return found


def identity_hash(identity: Identity) -> str:
    """sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def sae_hash(ref: SAERef) -> str | None:
    """Content hash of a local SAE folder; None for a public name, which SAELens does not pin to a content."""
    return folder_hash(ref.path) if ref.path is not None else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}...{text[-4:]}"
