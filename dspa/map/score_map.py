"""What steering asks of a map, however its scores are made: rows of A summed, ridge regression, or the mean alone."""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Scores = Literal["rows", "ridge", "mean"]
"""rows: sums of rows of A, the paper's (`dspa.map.artifact_map.ArtifactMap`). ridge, mean: `dspa.map.ridge`."""


@runtime_checkable
class ScoreMap(Protocol):
    """Scores of prompts: how much each output latent is to be wanted, more in chosen than in rejected answers."""

    @property
    def n_triples(self) -> int: ...

    @property
    def d_sae(self) -> int:
        """Width of the output SAE."""
        ...

    @property
    def mean_difference(self) -> Float[Tensor, " d_out"]:
        """The score without conditions."""
        ...

    @property
    def column_sums(self) -> Float[Tensor, " d_out"]:
        """By which the audit ranks output latents."""
        ...

    @property
    def support(self) -> Int[Tensor, " d_in"] | None:
        """N_i of each input latent's gate; None for a map without gates."""
        ...

    def scores(
        self, selected: Int[Tensor, "batch k"], density: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """s(x) of prompts with these densities, whose densest input latents are ``selected`` (-1: none)."""
        ...

    def interval(
        self, selected: Int[Tensor, "batch k"], columns: Int[Tensor, "batch j"]
    ) -> tuple[Float[Tensor, "batch j"], Float[Tensor, "batch j"]] | None:
        """(low, high) of the scores at the given columns; None where the artifact cannot say."""
        ...

    def candidates(self, k: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """(augment, ablate): the k output latents with the largest and the smallest column sums."""
        ...

    def to(self, device: torch.device | str) -> "ScoreMap": ...

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        ...
