"""The edit of latent activations (arXiv 2603.21461, "Online", step 4)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Scale = Literal["max", "own"]
Mode = Literal["ablate", "augment", "both"]


def latent_change(
    latents: Float[Tensor, "batch pos k"],
    sign: Float[Tensor, "batch k"],
    strongest: Float[Tensor, "batch pos"] | None,
    movable: Bool[Tensor, "batch pos k"],
    *,
    alpha: float,
) -> Float[Tensor, "batch pos k"]:
    """f~' - f~ of the selected latents where ``movable``, 0 elsewhere.

    ``sign`` is -1 to ablate, +1 to augment. The step is alpha * M with M = ``strongest``, the largest activation over
    all latents of the token (the paper, ``scale: max``); without ``strongest`` it is alpha times the latent's own
    activation (``scale: own``). Ablated latents stop at 0.
    """
    size = latents if strongest is None else strongest[..., None]
    moved = torch.addcmul(latents, sign[:, None], size, value=alpha).clamp_(min=0)
    # Not a product: NaN (an input normalisation divides by a padding token's norm, 0) must not spread from here.
    return torch.where(movable, moved.sub_(latents), 0.0)


def movable_latents(
    latents: Float[Tensor, "batch pos k"],
    sign: Float[Tensor, "batch k"],
    steered: Bool[Tensor, "batch pos"],
    *,
    active_only: bool = True,
) -> Bool[Tensor, "batch pos k"]:
    """Where a latent may move: it is selected (``sign`` is not 0), its token is steered and, with ``active_only`` (the
    paper), it fires on that token."""
    allowed = steered[..., None] & (sign != 0)[:, None]
    return allowed & (latents > 0) if active_only else allowed
