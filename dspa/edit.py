"""The edit of latent activations at one token (arXiv 2603.21461, "Online", step 4)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Scale = Literal["max", "own"]
Mode = Literal["ablate", "augment", "both"]


def latent_change(
    latents: Float[Tensor, "row k"],
    sign: Float[Tensor, "row k"],
    strongest: Float[Tensor, " row"],
    *,
    alpha: float,
    scale: Scale,
    active_only: bool = True,
) -> Float[Tensor, "row k"]:
    """f~' - f~ of the selected latents.

    ``sign`` is -1 to ablate, +1 to augment, 0 for no latent. The step is alpha * M with M = ``strongest``, the largest
    activation over all latents of the token (``scale='max'``, the paper), or alpha times the latent's own activation
    (``'own'``). Ablated latents stop at 0. With ``active_only`` (the paper) inactive latents do not move.
    """
    size = strongest[:, None] if scale == "max" else latents
    moved = (latents + sign * alpha * size).clamp(min=0)
    movable: Bool[Tensor, "row k"] = sign != 0
    if active_only:
        movable &= latents > 0
    return torch.where(movable, moved - latents, torch.zeros_like(latents))
