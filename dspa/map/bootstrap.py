"""How sure is a prompt's score? Percentile intervals from triples drawn again."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.map.condiff import ConditionalDifferenceMap

_BLOCK = 1 << 22  # weights made at a time: resamples x triples


def score_intervals(
    full: ConditionalDifferenceMap,
    selected: Int[Tensor, "batch k"],
    columns: Int[Tensor, "batch j"],
    *,
    n_resamples: int,
    seed: int,
    level: float,
) -> tuple[Float[Tensor, "batch j"], Float[Tensor, "batch j"]]:
    """(low, high) of s_j(x) for each row's ``columns`` j and ``selected`` input latents (-1: none; NaN for no column).

    Triples are drawn with replacement, the same draws for every row; thresholds and the set of supported latents stay
    as they were fitted. Under the strict gate a row is divided by its support among the drawn triples, and is zero in
    a draw without any. Deterministic for a seed, on every device.
    """
    n, device = full.n_triples, full.always.device
    gates, changes = [], []
    for latents, wanted in zip(selected, columns, strict=True):
        latents = latents[latents >= 0]
        gates.append(full.open_gates(latents[full.row_scale[latents] > 0]))
        changes.append(full.differences(wanted.clamp(min=0)))
    generator = torch.Generator().manual_seed(seed)
    draws: list[list[Tensor]] = [[] for _ in gates]
    block = max(1, _BLOCK // n)
    for first in range(0, n_resamples, block):
        size = min(block, n_resamples - first)
        drawn = torch.randint(n, (size, n), generator=generator)
        times = torch.zeros(size, n).scatter_add_(1, drawn, torch.ones(size, n)).to(device)
        for row, (opened, change) in enumerate(zip(gates, changes, strict=True)):
            if full.gate == "strict":
                support = times @ opened.t()
                per_triple = torch.where(support > 0, 1 / support.clamp(min=1), 0.0) @ opened
            else:
                per_triple = opened.sum(0, keepdim=True) / n
            draws[row].append((times * per_triple) @ change.t())
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], device=device)
    ends = torch.stack([torch.cat(d).quantile(tails, dim=0) for d in draws], dim=1)
    low, high = ends.masked_fill((columns < 0)[None], torch.nan)
    return low, high
