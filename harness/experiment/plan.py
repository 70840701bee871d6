"""The plan of a suite: which cells it consists of, and what each of them is given."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.data.triples import Budget, Triple, draw_budget
from harness.experiment.suite import Suite, Variant, VariantSection
from harness.run_folder.plan import (
    BudgetName,
    Plan,
    PlannedBenchmark,
    PlannedCell,
    PlannedVariant,
    budget_order,
    cell_name,
    flops_budget,
)


def make_plan(suite: Suite, folder: Path) -> Plan:
    """The plan of ``suite`` for the run folder ``folder``, to which paths in it are relative.

    A variant is run at every budget with every seed; one that uses no triples once per seed, as budget 0. Sweep points
    are run at the largest budget with the first seed only (the largest number of triples, if any). Raises ValueError
    for two swept values that would share a name.
    """
    pairs = list(zip(suite.file.variants, suite.variants, strict=True))
    cells = [cell for section, variant in pairs for cell in _variant_cells(suite, section, variant, folder)]
    for name, count in Counter(cell.name for cell in cells).items():
        if count > 1:
            raise ValueError(f"two swept values would both be called {name!r}; change one of them")
    return Plan(
        name=suite.name,
        baseline=suite.file.report.baseline or suite.variants[0].name,
        budgets=tuple(sorted(_budgets(suite), key=budget_order)),
        seeds=suite.file.seeds,
        seed=suite.file.seed,
        variants=tuple(
            PlannedVariant(
                name=section.name,
                label=variant.label,
                method=section.method,
                uses_triples=variant.method.uses_triples,
                settings=suite.settings(section, variant.method, folder),
            )
            for section, variant in pairs
        ),
        benchmarks=tuple(
            PlannedBenchmark(
                name=name,
                metrics=benchmark.metrics,
                judged_twice=name in suite.judged_twice,
                files=benchmark.files or name,
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


def _budgets(suite: Suite) -> tuple[BudgetName, ...]:
    return (*suite.file.budgets, *map(flops_budget, suite.file.flops_budgets))


def _variant_cells(suite: Suite, section: VariantSection, variant: Variant, folder: Path) -> Iterator[PlannedCell]:
    budgets: tuple[BudgetName, ...] = _budgets(suite) if variant.method.uses_triples else (0,)
    runs = [(variant.method, budget, seed, None) for budget in budgets for seed in range(suite.file.seeds)]
    runs += [(point.method, max(budgets, key=budget_order), 0, point.values) for point in variant.points]
    for method, budget, seed, sweep in runs:
        yield PlannedCell(
            name=cell_name(section.name, budget, seed, sweep),
            variant=section.name,
            label=variant.label,
            method=section.method,
            budget=budget,
            seed=seed,
            uses_triples=method.uses_triples,
            sweep=None if sweep is None else dict(sweep),
            params=suite.params(section, method, {"folder": folder}),
        )


def derive_seed(suite_seed: int, *names: str) -> int:
    """A seed in [0, 2**31) for the thing called ``names``, from the suite's one seed.

    It depends on nothing else, so adding a cell or a benchmark changes no other.
    """
    digest = hashlib.sha256("\x1f".join([str(suite_seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def cell_triples(suite: Suite, cell: PlannedCell, triples: Sequence[Triple]) -> Budget:
    """The triples ``cell`` may see: same subset, same order for every variant at its budget and seed.

    Where the budget is a bill, that is all of them, in the order that smaller subsets are cut from.
    """
    size = cell.budget if isinstance(cell.budget, int) else len(triples)
    return draw_budget(triples, size, seed=suite.file.seed + cell.seed)
