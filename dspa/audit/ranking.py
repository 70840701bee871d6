"""Which output latents are audited: the ends of the map's column sums, and a random control."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SETS = ("ablate", "augment", "random")


@dataclass(frozen=True)
class Ranking:
    """The audited latents, each list in order of rank: strongest first, the random ones by number."""

    ablate: tuple[int, ...]
    augment: tuple[int, ...]
    random: tuple[int, ...]

    def members(self, name: str) -> tuple[int, ...]:
        """The latents of one of `SETS`."""
        return getattr(self, name)

    @property
    def all(self) -> list[int]:
        """Every audited latent once."""
        return list(dict.fromkeys((*self.ablate, *self.augment, *self.random)))


def rank_latents(column_sums: Float[Tensor, " d_sae"], live: Bool[Tensor, " d_sae"], top: int, seed: int) -> Ranking:
    """The ``top`` smallest (ablate; below 0) and largest (augment; above 0) column sums sum_i A_ij, ties to the lower
    latent, and as many ``live`` latents drawn with ``seed`` (from all of them, so they may be among the others too).
    """
    ascending = column_sums.sort(stable=True)
    descending = column_sums.sort(descending=True, stable=True)
    candidates = live.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    drawn = candidates[torch.randperm(len(candidates), generator=generator)[:top]]
    return Ranking(
        ablate=tuple(ascending.indices[:top][ascending.values[:top] < 0].tolist()),
        augment=tuple(descending.indices[:top][descending.values[:top] > 0].tolist()),
        random=tuple(sorted(drawn.tolist())),
    )
