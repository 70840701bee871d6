"""Controls: what DSPA does must come from the map and from the prompt, so steering without either must do nothing good.

Both are drawn from the prompt's own densities, so an answer depends neither on the batch nor on the order of prompts.
"""

import hashlib
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.map.sparse import SparseRows

Control = Literal["random_latents", "other_prompt"]
BANK = 256
"""Training prompts at most whose densities an artifact keeps for `other_prompt`."""


def prompt_bank(prompt: SparseRows, seed: int) -> SparseRows:
    """Densities of at most 256 training prompts, drawn without replacement by ``seed``."""
    order = torch.randperm(len(prompt), generator=torch.Generator().manual_seed(seed))
    return prompt.select(order[:BANK].sort().values)


def other_prompt(density: Float[Tensor, "batch d_in"], bank: SparseRows) -> Float[Tensor, "batch d_in"]:
    """For each prompt's densities those of a prompt of ``bank``: any one, by a hash of the densities.

    One that is alike is passed over, for the prompt may be in the bank; in a bank of nothing else it is taken.
    """
    others = torch.empty_like(density)
    for row, own in enumerate(density.cpu()):
        first = _hash(own) % len(bank)
        candidates = (bank[(first + step) % len(bank)].to(own) for step in range(len(bank)))
        others[row] = next((other for other in candidates if not torch.equal(other, own)), own).to(others.device)
    return others


def random_latents(
    latents: Int[Tensor, "batch k"], density: Float[Tensor, "batch d_in"], fires: Int[Tensor, " candidates"]
) -> Int[Tensor, "batch k"]:
    """As many different latents of ``fires`` in the places of the selected ones (-1: none), drawn for each row by a
    hash of its prompt's densities. Where ``fires`` has too few, the last places are left empty (-1)."""
    drawn = torch.full_like(latents, -1)
    for row, own in enumerate(density.cpu()):
        places = (latents[row] >= 0).nonzero()[:, 0]
        order = torch.randperm(len(fires), generator=torch.Generator().manual_seed(_hash(own)))[: len(places)]
        drawn[row, places[: len(order)]] = fires[order.to(fires.device)]
    return drawn


def _hash(density: Float[Tensor, " d_in"]) -> int:
    """From which latents fire, and on what share of the tokens to 16 bits: devices may round the shares differently."""
    levels = (density.float() * (1 << 16)).round().int()
    digest = hashlib.sha256(levels.numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
