"""From a prompt's densities to its latent sets (arXiv 2603.21461, "Online", steps 1-3)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.extremes import extreme_columns


def top_prompt_latents(density: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, "batch k"]:
    """The k densest input latents of each prompt, ties to the lower one; -1 where fewer than k are active at all."""
    return _largest(density, k)


def ablate_set(scores: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, "batch k"]:
    """The k smallest scores of each row, only negative ones; -1 fills up."""
    return augment_set(-scores, k)


def augment_set(scores: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, "batch k"]:
    """The k largest scores of each row, only positive ones; -1 fills up."""
    return _largest(scores, k)


def _largest(values: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, "batch k"]:
    columns = extreme_columns(values, k)
    return columns.masked_fill(values.gather(1, columns) <= 0, -1)


def mean_pairwise_jaccard(sets: list[frozenset[int]]) -> float:
    """Mean Jaccard similarity over all pairs; two empty sets count as equal. Needs two sets (ValueError)."""
    if len(sets) < 2:
        raise ValueError("Jaccard similarity needs at least two sets")
    width = max((max(s, default=-1) for s in sets), default=-1) + 1
    member = torch.zeros(len(sets), max(width, 1))
    for row, latents in enumerate(sets):
        member[row, list(latents)] = 1
    shared = member @ member.t()
    sizes = member.sum(1)
    union = sizes[:, None] + sizes[None] - shared
    similarity = torch.where(union > 0, shared / union.clamp(min=1), 1.0)
    upper = torch.triu(torch.ones_like(similarity, dtype=torch.bool), diagonal=1)
    return float(similarity[upper].mean())
