"""Learning rates of a training: warm-up and decay in which every optimiser step has a rate above 0."""

import math
from collections.abc import Callable

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "constant": lambda _: 1.0,
}


def rate_share(
    done: int | float, total: int | float, *, step: int | float, warmup: int | float, schedule: str
) -> float:
    """Share (0 to 1) of the learning rate in the optimiser step that brings a training of ``total`` to ``done``.

    All in one unit, steps or FLOPs: ``step`` is what this step itself takes, ``warmup`` the length of the warm-up. The
    rate rises in proportion to ``done``, is whole where the warm-up (of one step at least) ends, and falls from there
    as ``schedule`` says, linear, cosine or constant, to reach 0 one step behind the end. In steps this is transformers'
    schedule for one step more, from its second step on: its first step has a rate of 0 and changes nothing.
    """
    peak = max(warmup, step)
    if done < peak:
        return done / peak
    return _SHAPES[schedule]((done - peak) / (total + step - peak))
