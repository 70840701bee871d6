"""`dspa-bench perf ridge`: fitting and asking the ridge map, against dense products and solves."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from dspa.map.kernel import PENALTIES
from dspa.map.ridge import RidgeMap, most_flops
from dspa.map.sparse import SparseRows
from dspa.perf.synthetic import firing_shares
from harness.compute import count_flops
from harness.compute.memory import read_peak, reset_peak, resident_bytes
from harness.speed.compare import always, compare
from harness.speed.report import Figure, Section

FIT, DENSE_FIT = "RidgeMap.fit", "dense solve and leave-one-out"
QUERY, DENSE_QUERY = "query, shipped factors", "query, dense kernel form"
_MILLISECONDS, _GOAL_WIDTH = 1.0, 16_384
_TOKENS = 45  # of an answer: differences are multiples of 1 / 45
_DENSE_NUMBERS = 1 << 26  # of the largest matrix of the dense reference: 256 MB of float32


@dataclass(frozen=True)
class RidgeOptions:
    """``triples`` and ``width`` of both SAEs; ``active`` latents in a prompt, and as many differences, in the mean."""

    triples: int = 1000
    width: int = 16_384
    active: int = 600
    rank: int | None = 128
    rounds: int = 5
    queries: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.triples, self.active, self.queries) < 1 or (self.rank is not None and self.rank < 1):
            raise ValueError("triples, active latents, queries and rank must be at least 1")
        if self.active > self.width // 4:
            raise ValueError(f"{self.active} active latents of {self.width} are not sparse; give at most a quarter")

    @property
    def dense(self) -> bool:
        """Whether the dense reference fits."""
        return self.triples * self.width <= _DENSE_NUMBERS


def measure_ridge(options: RidgeOptions, *, tell: Callable[[str], object] = print) -> list[Section]:
    """One section. Beyond 256 MB for a dense matrix there is no reference, and the fit runs once."""
    draw = torch.Generator().manual_seed(options.seed)
    prompt, difference = (draw_rows(options, draw, signed=signed) for signed in (False, True))
    tell(f"drawn: {len(prompt.column):,} active latents, {len(difference.column):,} differences")
    before = resident_bytes()
    reset_peak()
    begin = time.perf_counter()
    with count_flops() as executed:
        fitted, found, error = RidgeMap.fit(prompt, difference, rank=options.rank)
    seconds, peak = time.perf_counter() - begin, read_peak().host - before
    size = sum(tensor.nbytes for tensor in fitted.tensors().values())
    n, width = options.triples, options.width
    section = Section(f"Ridge map of {n:,} triples at {width:,} latents")
    section.facts = {
        "densities": "drawn: latents fire with log-normal frequency; "
        f"{len(prompt.column) // n} are active in a prompt, {len(difference.column) // n} differ between its answers",
        "map": f"rank {len(fitted.outer)}, {len(fitted.latents):,} input latents have a row; lambda {found.penalty}, "
        f"relative error of the rank {error:.3f} (the differences are noise, the hardest case for a small rank)",
        "query": f"one prompt's densities -> its scores; median of {options.queries}",
    }
    asked = [prompt[row][None] for row in range(min(n, options.queries))]
    none = torch.zeros(1, 0, dtype=torch.long)

    def query() -> None:
        for density in asked:
            fitted.scores(none, density)

    candidates = {QUERY: always(query)}
    if options.dense:
        units = _unit(prompt.dense())
        with count_flops() as counted:
            weights = dense_fit(units, difference.dense())[1]
        mean = difference.mean()

        def dense_query() -> None:
            for density in asked:
                torch.addmm(mean, _unit(density) @ units.t(), weights)

        candidates |= {DENSE_QUERY: always(dense_query)}
        fits = {
            FIT: always(partial(RidgeMap.fit, prompt, difference, rank=options.rank)),
            DENSE_FIT: always(lambda: dense_fit(_unit(prompt.dense()), difference.dense())),
        }
        of_fit = compare(fits, reference=DENSE_FIT, rounds=options.rounds, warmup=0, seed=options.seed)
        section.add(of_fit, of_fit.control, DENSE_FIT)
        section.add(of_fit, FIT, DENSE_FIT)
        section.figures.append(Figure(DENSE_FIT, of_fit.median_seconds(DENSE_FIT), "s"))
        section.figures.append(Figure(f"{DENSE_FIT}: products", counted.get_total_flops(), "FLOPs"))
        seconds = of_fit.median_seconds(FIT)
    of_query = compare(candidates, reference=QUERY, rounds=options.rounds, warmup=1, seed=options.seed)
    section.add(of_query, of_query.control, QUERY)
    if options.dense:
        section.add(of_query, QUERY, DENSE_QUERY)
    goal = _MILLISECONDS if width <= _GOAL_WIDTH else None
    section.figures += [
        Figure(FIT, seconds, "s"),  # of the only run, where there is no reference
        Figure(f"{FIT}: executed", executed.get_total_flops(), "FLOPs"),
        Figure(f"{FIT}: predicted at most", most_flops(n, width, width, rank=options.rank), "FLOPs"),
        Figure(f"{FIT}: peak memory beside its input", peak / 1e6, "MB"),
        Figure("size of the map", size / 1e6, "MB"),
        Figure(QUERY, 1000 * of_query.median_seconds(QUERY) / len(asked), "ms", goal),
    ]
    tell(section.markdown() + "\n")
    return [section]


def draw_rows(options: RidgeOptions, draw: torch.Generator, *, signed: bool) -> SparseRows:
    """[triples, width] of shares of 45 tokens, in -1..1 if ``signed``: latents by log-normal frequency, each triple's
    own. Never dense."""
    n, width = options.triples, options.width
    share = firing_shares(torch.randn(width, generator=draw))
    drawn = torch.multinomial(share, n * options.active, replacement=True, generator=draw)
    row = torch.arange(n).repeat_interleave(options.active)
    key = (row * width + drawn).unique()
    start = torch.nn.functional.pad(torch.bincount(key // width, minlength=n).cumsum(0), (1, 0))
    tokens = torch.randint(1, _TOKENS + 1, (len(key),), generator=draw).float()
    sign = torch.randint(2, (len(key),), generator=draw) * 2 - 1 if signed else 1
    return SparseRows(start, (key % width).int(), sign * tokens / _TOKENS, width)


def dense_fit(
    units: Float[Tensor, "n d_in"], difference: Float[Tensor, "n d_out"]
) -> tuple[float, Float[Tensor, "n d_out"]]:
    """(penalty, (K + lambda I)^-1 (D - mu)) as one writes them first: a hat matrix and a product for each penalty."""
    change = difference - difference.mean(0)
    gram = units @ units.t()
    errors = {}
    for penalty in PENALTIES:
        regular = gram + penalty * torch.eye(len(gram))
        hat = torch.linalg.solve(regular, gram).t()
        errors[penalty] = float(((change - hat @ change) / (1 - hat.diagonal()[:, None])).pow(2).sum())
    best = min(errors, key=lambda penalty: errors[penalty])
    return best, torch.linalg.solve(gram + best * torch.eye(len(gram)), change)


def _unit(density: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    active = (density > 0).float()
    return active / active.sum(1, keepdim=True).clamp(min=1).sqrt()
