"""How budgets and cells of a run are called; the plan and the report must agree without one loading the other."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

BudgetName = int | str
"""A number of triples (0: the method uses none), or a bill in FLOPs as `flops_budget` calls it."""
_FLOPS = "flops"


def flops_budget(flops: int) -> str:
    """``1e+11flops`` for 100 000 000 000: exact, and as short as scientific notation allows."""
    return f"{Decimal(flops).normalize():e}{_FLOPS}"


def flops_of(budget: BudgetName) -> int | None:
    """The bill that ``budget`` stands for; None for a number of triples."""
    return int(Decimal(budget.removesuffix(_FLOPS))) if isinstance(budget, str) else None


def budget_order(budget: BudgetName) -> tuple[int, int]:
    """Sorts bills before numbers of triples: the last is the largest number of triples where there is one."""
    flops = flops_of(budget)
    return (0, flops) if flops is not None else (1, int(budget))


def budget_text(budget: BudgetName) -> str:
    """``300 triples`` or ``1e+11 FLOPs``."""
    return f"{budget} triples" if isinstance(budget, int) else f"{budget.removesuffix(_FLOPS)} FLOPs"


def cell_name(variant: str, budget: BudgetName, seed: int, sweep: Mapping[str, Any] | None = None) -> str:
    """``dspa__n300__s0``, ``dspa__1e+11flops__s0``, and ``dspa@alpha=0.2,top=5__n300__s0`` for a point of a sweep.

    It names a folder, so odd characters of swept values turn into '-'.
    """
    point = ",".join(f"{k}={re.sub(r'[^A-Za-z0-9.+-]', '-', str(v))}" for k, v in (sweep or {}).items())
    data = f"n{budget}" if isinstance(budget, int) else budget
    return f"{variant}@{point}__{data}__s{seed}" if point else f"{variant}__{data}__s{seed}"
