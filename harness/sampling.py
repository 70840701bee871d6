"""Sampling whose result for a row does not depend on its batch: Gumbel noise from one generator per row."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


def row_seed(seed: int, ids: Sequence[int]) -> int:
    """A row's own seed, from the request's seed and the prompt's ids."""
    digest = hashlib.sha256(f"{seed}:{','.join(map(str, ids))}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling: argmax(logits / T + Gumbel) is a draw from softmax(logits / T).

    Rows with temperature 0 stay greedy. One random generator a row, so neighbours and batch size change nothing.
    """

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        self._temperatures = temperatures
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        noisy = scores.clone()
        for row, (temperature, generator) in enumerate(zip(self._temperatures, self._generators, strict=True)):
            if temperature > 0:
                noise = torch.empty_like(scores[row]).exponential_(generator=generator)
                noisy[row] = scores[row] / temperature - noise.log()
        return noisy
