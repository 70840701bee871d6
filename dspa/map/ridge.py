"""Ridge scores: the prompt's scores as a regression on everything that is active in it, instead of a sum of rows of A.

Beyond the paper; see docs/dspa.md, "Ridge scores". The map without conditions, s(x) = mean difference, is the
same without factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.map.condiff import below
from dspa.map.kernel import LANDMARKS, LEFT_OUT, PENALTIES, LeaveOneOut, PromptFeatures
from dspa.map.sparse import OnDevice, SparseRows
from harness.compute.flops import eigendecomposition_flops

_PREFIX = "ridge."


@dataclass(frozen=True, eq=False)
class RidgeMap(OnDevice):
    """s(x) = mu + (sum over the input latents i active in x of F_i) / sqrt(their number) C.

    An input latent that was never active in the fit counts in that number and has no row. A prompt in which nothing is
    active gets mu, and so does every prompt where there are no factors (`of_mean`).
    """

    mean_difference: Float[Tensor, " d_out"]
    """mu"""
    latents: Int[Tensor, " active"]
    """Input latents that have a row, int32."""
    inner: Float[Tensor, "active rank"]
    """F"""
    outer: Float[Tensor, "rank d_out"]
    """C"""
    d_in: int
    n_triples: int

    @classmethod
    def fit(
        cls, prompt: SparseRows, difference: SparseRows, *, rank: int | None = None, landmarks: int = LANDMARKS
    ) -> tuple["RidgeMap", LeaveOneOut, float]:
        """The map, what leave-one-out found, and the relative error of the truncation to ``rank`` (None: full rank).

        That error is |S_rank - S| / |S| (Frobenius), S the fitted scores of the triples without mu; no factors of that
        rank have a smaller one. ``prompt`` [n, d_in] are densities and ``difference`` [n, d_out] differences of the
        same triples. Raises ValueError for no triples, numbers of them that differ, ``rank`` or ``landmarks`` below 1,
        a negative density, and numbers that are not finite.
        """
        if len(prompt) == 0 or len(prompt) != len(difference):
            raise ValueError(f"need the same number (> 0) of rows, got {len(prompt)} and {len(difference)}")
        if landmarks < 1 or (rank is not None and rank < 1):
            raise ValueError(f"rank and landmarks must be at least 1, got {rank} and {landmarks}")
        assert prompt.value is not None and difference.value is not None
        if not bool((torch.isfinite(prompt.value) & (prompt.value >= 0)).all()):
            raise ValueError("a density is negative or not finite; densities are shares of tokens, from 0 to 1")
        if not bool(torch.isfinite(difference.value).all()):
            raise ValueError("a response difference is not finite; differences of shares are between -1 and 1")
        features = PromptFeatures.of(prompt, landmarks=landmarks)
        moments = features.moments(difference)
        found = features.leave_one_out(moments)
        # Fitted scores are Q T, with orthonormal columns Q = phi / root and rows T = diag(weight) phi^T (D - mu): the
        # best approximation keeps the leading eigenvectors of T T^T.
        root = features.energy.sqrt()
        weight = root / (features.energy + found.penalty)
        squares, vectors = torch.linalg.eigh(weight[:, None] * moments.second * weight)
        squares = squares.flip(0).clamp(min=0)
        kept = int((squares[:rank] > 0).sum())
        vectors = vectors.flip(1)[:, :kept]
        latents, inner = features.by_latent(vectors / root[:, None])
        fitted = cls(
            mean_difference=moments.mean.float(),
            latents=latents.int(),
            inner=inner,
            outer=features.project(difference, moments.mean, weight[:, None] * vectors),
            d_in=prompt.width,
            n_triples=len(prompt),
        )
        total = float(squares.sum())
        return fitted, found, (float(squares[kept:].sum()) / total) ** 0.5 if total else 0.0

    @classmethod
    def of_mean(cls, mean_difference: Float[Tensor, " d_out"], *, d_in: int, n_triples: int) -> "RidgeMap":
        """s(x) = mu for every prompt."""
        device = mean_difference.device
        latents = torch.zeros(0, dtype=torch.int32, device=device)
        inner, outer = torch.zeros(0, 0, device=device), torch.zeros(0, len(mean_difference), device=device)
        return cls(mean_difference, latents, inner, outer, d_in, n_triples)

    @property
    def d_sae(self) -> int:
        """Width of the output SAE."""
        return len(self.mean_difference)

    @property
    def support(self) -> None:
        """There are no gates, so none has a support."""
        return None

    @property
    def column_sums(self) -> Float[Tensor, " d_out"]:
        """mu: the score of a prompt about which nothing is known, by which the audit ranks output latents."""
        return self.mean_difference

    def scores(
        self, selected: Int[Tensor, "batch k"], density: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """s(x) of each row from the input latents with ``density`` > 0; which are ``selected`` makes no difference.

        A row at a time, so that a row's scores are the same to the bit whatever its neighbours.
        """
        scores = self.mean_difference.repeat(len(density), 1)
        for score, rho in zip(scores, density, strict=True) if len(self.latents) else ():
            active = rho.nonzero()[:, 0]
            known = self._place[active]
            known = known[known >= 0]
            if len(known):
                score += self.inner[known].sum(0) @ self.outer / len(active) ** 0.5
        return scores

    def interval(self, selected: Int[Tensor, "batch k"], columns: Int[Tensor, "batch j"]) -> None:
        """The triples' differences are not kept, so nothing can be drawn again."""
        return

    def candidates(self, k: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """(augment, ablate): the k output latents with the largest and the smallest mu, ties to the lower."""
        mean = self.mean_difference
        return mean.sort(descending=True, stable=True).indices[:k], mean.sort(stable=True).indices[:k]

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        parts = {name: getattr(self, name) for name in ("mean_difference", "latents", "inner", "outer")}
        parts["shape"] = torch.tensor([self.d_in, self.n_triples])
        return {_PREFIX + name: part for name, part in parts.items()}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> "RidgeMap":
        """Inverse of ``tensors``."""
        own = below(tensors, _PREFIX)
        d_in, n_triples = own.pop("shape").tolist()
        return cls(**own, d_in=d_in, n_triples=n_triples)

    @cached_property
    def _place(self) -> Int[Tensor, " d_in"]:
        """Row of each input latent in F; -1: none."""
        place = torch.full((self.d_in,), -1, device=self.latents.device)
        place[self.latents.long()] = torch.arange(len(self.latents), device=place.device)
        return place


def most_flops(n: int, d_in: int, d_out: int, *, rank: int | None, landmarks: int = LANDMARKS) -> int:
    """An upper bound of the FLOPs of `RidgeMap.fit` on ``n`` triples: as if every latent were active in every text, and
    all features were independent."""
    m, left_out = min(n, landmarks), min(n, LEFT_OUT)
    decomposed = 3 * eigendecomposition_flops((m, m))
    r = m if rank is None else min(rank, m)
    features = 2 * n * d_in * m + 2 * n * m * (3 * m) + 2 * m**3
    moments = 2 * n * d_out * m + 2 * d_out * m * m + 2 * left_out * d_out * m + 2 * d_out * m
    left = 2 * len(PENALTIES) * left_out * m * m
    factors = 2 * n * m * r + 2 * n * d_out * r + 2 * m * m * r + 2 * d_in * m * r
    return decomposed + features + moments + left + factors
