"""The plan: which cells a suite consists of. A cell is one method variant at one budget and one seed."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel

from harness.experiment.schema import VariantSection
from harness.experiment.suite import Suite, Variant
from harness.method import AlignmentMethod
from harness.names import BudgetName, budget_order, cell_name, flops_budget, flops_of
from harness.preferences import Budget, Triple, draw_budget


@dataclass(frozen=True)
class Cell:
    """One unit of work and of distribution.

    ``budget`` is the number of triples (0 for a method that uses none) or the name of a bill (see `flops_limit`),
    ``seed`` the repeat (0, 1, ...), ``sweep`` the swept hyper-parameters of a sweep cell, ``params`` all resolved
    hyper-parameters.
    """

    name: str
    variant: str
    label: str
    method_name: str
    method: AlignmentMethod
    budget: BudgetName
    seed: int
    sweep: Mapping[str, Any] | None
    params: Mapping[str, Any]

    @property
    def point(self) -> str:
        """The variant, with the swept values of a sweep cell: ``dspa`` or ``dspa@alpha=0.2``."""
        return self.name.split("__")[0]

    @property
    def flops_limit(self) -> int | None:
        """The bill at which the fit stops; None where the budget is a number of triples."""
        return flops_of(self.budget)

    @property
    def uses_triples(self) -> bool:
        return self.method.uses_triples

    def describe(self) -> dict[str, Any]:
        """What cell.json says of the cell before anything is measured."""
        return {
            "cell": self.name,
            "variant": self.variant,
            "label": self.label,
            "method": self.method_name,
            "budget": self.budget,
            "seed": self.seed,
            "uses_triples": self.uses_triples,
            "sweep": dict(self.sweep) if self.sweep is not None else None,
            "params": dict(self.params),
        }


def plan(suite: Suite) -> list[Cell]:
    """All cells of the suite, those that take longest first (so that workers end together).

    A variant is run at every budget with every seed; one that uses no triples once per seed, as budget 0.
    Sweep points are run at the largest budget with the first seed only (the largest number of triples, if any).
    """
    cells = [
        cell
        for section, variant in zip(suite.file.variants, suite.variants, strict=True)
        for cell in _variant_cells(suite, section, variant)
    ]
    for name, count in Counter(cell.name for cell in cells).items():
        if count > 1:
            raise ValueError(f"two swept values would both be called {name!r}; change one of them")
    return sorted(cells, key=lambda cell: budget_order(cell.budget), reverse=True)


def _variant_cells(suite: Suite, section: VariantSection, variant: Variant) -> Iterator[Cell]:
    given = (*suite.file.budgets, *map(flops_budget, suite.file.flops_budgets))
    budgets: tuple[BudgetName, ...] = given if variant.method.uses_triples else (0,)
    runs = [(variant.method, budget, seed, None) for budget in budgets for seed in range(suite.file.seeds)]
    runs += [(point.method, max(budgets, key=budget_order), 0, point.values) for point in variant.points]
    for method, budget, seed, sweep in runs:
        yield Cell(
            name=cell_name(section.name, budget, seed, sweep),
            variant=section.name,
            label=variant.label,
            method_name=section.method,
            method=method,
            budget=budget,
            seed=seed,
            sweep=sweep,
            params=_params(method, section.params, suite),
        )


def _params(method: AlignmentMethod, given: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    """All hyper-parameters, defaults included; an SAE that the suite calls by name keeps its name."""
    resolved = cast(BaseModel, method).model_dump(mode="json")
    return {key: _named(given.get(key), value, suite.file.saes) for key, value in resolved.items()}


def _named(given: Any, resolved: Any, saes: Mapping[str, Any]) -> Any:
    """``given`` where it is the name of an SAE, or a list that holds some, and ``resolved`` elsewhere."""
    if isinstance(given, str) and given in saes and isinstance(resolved, dict):
        return given
    if isinstance(given, list) and isinstance(resolved, list) and len(given) == len(resolved):
        return [_named(one, other, saes) for one, other in zip(given, resolved, strict=True)]
    return resolved


def derive_seed(suite_seed: int, *names: str) -> int:
    """A seed in [0, 2**31) for the thing called ``names``, from the suite's one seed.

    It depends on nothing else, so adding a cell or a benchmark changes no other.
    """
    digest = hashlib.sha256("\x1f".join([str(suite_seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def cell_triples(suite: Suite, cell: Cell, triples: Sequence[Triple]) -> Budget:
    """The triples ``cell`` may see: same subset, same order for every variant at its budget and seed.

    Where the budget is a bill, that is all of them, in the order that smaller subsets are cut from.
    """
    size = cell.budget if isinstance(cell.budget, int) else len(triples)
    return draw_budget(triples, size, seed=suite.file.seed + cell.seed)
