"""How the cells of a run are called; the plan and the report must agree on it without one loading the other."""

import re
from collections.abc import Mapping
from typing import Any


def cell_name(variant: str, budget: int, seed: int, sweep: Mapping[str, Any] | None = None) -> str:
    """``dspa__n300__s0``, and ``dspa@alpha=0.2,top=5__n300__s0`` for a point of a sweep.

    It names a folder, so odd characters of swept values turn into '-'.
    """
    point = ",".join(f"{k}={re.sub(r'[^A-Za-z0-9.+-]', '-', str(v))}" for k, v in (sweep or {}).items())
    return f"{variant}@{point}__n{budget}__s{seed}" if point else f"{variant}__n{budget}__s{seed}"
