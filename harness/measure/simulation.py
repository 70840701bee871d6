"""How often the intervals of means cover the truth and the paired test errs, where the truth is known.

    python -m harness.measure.simulation --data-sets 2000

prints the table of ``docs/statistics.md``. A value is made of a seed effect, a prompt effect and noise, all normal, and
is then read as a rating (rounded to 1 ... 10) or as right or wrong (0 or 100). Of the paired test, both variants share
the prompt effects and nothing else, and have the same mean.
"""

import argparse
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from harness.measure.spread import spread_of
from harness.measure.statistics import LEVEL, SIGNIFICANT

Kind = Literal["ratings", "right or wrong"]
EFFECTS = {"no": 0.0, "moderate": 0.3, "strong": 1.0}
"""Seed effect -> its standard deviation, in those of prompt effects and of the noise, which are both 1."""
SEEDS, PROMPTS, STRICT = (2, 3, 5), (20, 160), 0.001
_RATING, _RATING_SD, _SHARE = 6.0, 1.5, 0.6  # latent mean and sd of ratings; latent mean of what is right when above 0


class Case(NamedTuple):
    """Shares of the data sets: those whose interval ``covers`` the mean, and those in which p of two equal variants is
    below 0.05 (``errs``) and below 0.001 (``errs_strictly``)."""

    covers: float
    errs: float
    errs_strictly: float


def simulate(kind: Kind, seeds: int, prompts: int, effect: float, *, data_sets: int, seed: int = 0) -> Case:
    """Draw ``data_sets`` of ``seeds`` x ``prompts`` values for two equal variants; ``effect`` as in `EFFECTS`."""
    rng, covers, errs, strictly = np.random.default_rng(seed), 0, 0, 0
    once = np.ones((seeds, prompts))
    truth = _truth(kind, 2 + effect**2)
    for _ in range(data_sets):
        asked = rng.standard_normal((1, prompts))
        first, second = (
            _read(kind, asked + effect * rng.standard_normal((seeds, 1)) + rng.standard_normal((seeds, prompts)))
            for _ in range(2)
        )
        # An interval of no width around another value than the truth misses it, and equal variants are not tested.
        covers += abs(first.mean() - truth) <= spread_of(first, once).half_width(1 - LEVEL)
        difference = first - second
        p = spread_of(difference, once).p_value(float(difference.mean())) if difference.any() else 1.0
        errs, strictly = errs + (p < SIGNIFICANT), strictly + (p < STRICT)
    return Case(covers / data_sets, errs / data_sets, strictly / data_sets)


def _read(kind: Kind, latent: Float[np.ndarray, "seed prompt"]) -> Float[np.ndarray, "seed prompt"]:
    if kind == "ratings":
        return np.clip(np.round(_RATING + _RATING_SD * latent), 1, 10)
    return 100.0 * (_SHARE + latent > 0)


def _truth(kind: Kind, variance: float) -> float:
    """The mean of what is read of a normal latent value of mean 0."""
    sd = np.sqrt(variance)
    if kind == "ratings":
        above = ndtr((_RATING - np.arange(1.5, 10)) / (_RATING_SD * sd))  # of each threshold between two ratings
        return 1 + float(above.sum())
    return 100 * float(ndtr(_SHARE / sd))


def table(data_sets: int, seed: int = 0) -> str:
    """All cases in Markdown: coverage of the mean, p below 0.05 and below 0.001 without a difference, in percent."""
    lines = [f"| seeds | prompts | values | {' | '.join(f'{name} seed effect' for name in EFFECTS)} |"]
    lines.append("| ---: | ---: | --- |" + " --- |" * len(EFFECTS))
    for seeds in SEEDS:
        for prompts in PROMPTS:
            for kind in get_args(Kind):
                cases = (simulate(kind, seeds, prompts, e, data_sets=data_sets, seed=seed) for e in EFFECTS.values())
                cells = [" / ".join(f"{100 * share:.1f}" for share in case) for case in cases]
                lines.append(f"| {seeds} | {prompts} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.measure.simulation", description=table.__doc__)
    parser.add_argument("--data-sets", type=int, default=2000, help="drawn for each case (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    chosen = parser.parse_args(arguments)
    if chosen.data_sets < 1:
        parser.error(f"--data-sets {chosen.data_sets}: give at least 1")
    print(table(chosen.data_sets, chosen.seed))


if __name__ == "__main__":
    main()
