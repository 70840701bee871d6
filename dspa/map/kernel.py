"""Kernel ridge regression of the answers' differences on what is active in the prompts, and its leave-one-out error.

Prompts are compared by the cosine of their binary activity, K[n, m] = u_n . u_m. Everything is kept in coordinates in
which the regression is diagonal, so that all penalties cost one eigendecomposition. docs/dspa.md has the derivation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.map.sparse import BLOCK_NUMBERS, SparseRows

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""The lambdas that leave-one-out chooses from."""
LANDMARKS = 2048
LEFT_OUT = 4096
"""Triples that are left out one by one; of more, a sample of so many."""
_DOUBLE = 4096  # triples up to which features are kept in float64
_NEGLIGIBLE = 1e-11  # of the largest eigenvalue: what rounding leaves of zero
_SEED = 0


@dataclass(frozen=True)
class LeaveOneOut:
    """``penalty``: the lambda of `PENALTIES` with the smallest leave-one-out error, of equals the largest. ``share``:
    that error over the differences' own spread around their mean; None where they do not differ at all."""

    penalty: float
    share: float | None

    @property
    def figures(self) -> dict[str, float]:
        """As `dspa.diagnostics.LEGEND` names them."""
        explained = {} if self.share is None else {"unexplained_share": self.share}
        return {"ridge_lambda": self.penalty, **explained}


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """Nystroem features phi(x) = k(x) basis of the triples' prompts, k(x)[m] = u(x) . u_m over the landmarks.

    They are orthogonal over the triples. With all triples as landmarks phi(x) . phi(y) = u(x) . u(y) wherever x or y is
    among them, and ridge regression on phi is the exact kernel ridge regression.
    """

    landmarks: SparseRows
    """[m, d_in], binary: which input latents are active."""
    basis: Float[Tensor, "m kept"]
    """float64"""
    energy: Float[Tensor, " kept"]
    """sum_n phi_k(x_n)^2, float64."""
    values: Float[Tensor, "n kept"]
    """phi(x_n): float64 up to 4,096 triples, else float32."""

    @classmethod
    def of(cls, prompt: SparseRows, *, landmarks: int = LANDMARKS) -> "PromptFeatures":
        """Of prompt densities [n, d_in]. Up to ``landmarks`` triples all are landmarks, beyond it so many drawn ones.

        A prompt without an active latent has u = 0. Deterministic.
        """
        binary, n = replace(prompt, value=None), len(prompt)
        chosen = drawn(n, landmarks, prompt.start.device)
        cosines = _cosines(binary, chosen)
        scale, rotation = torch.linalg.eigh(cosines[chosen].double())
        kept = scale > _NEGLIGIBLE * scale.max()
        basis = rotation[:, kept] / scale[kept].sqrt()
        gram = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64, device=basis.device)
        for first, last in _blocks(n, len(chosen)):
            part = cosines[first:last].double() @ basis
            gram += part.t() @ part
        energy, rotation = torch.linalg.eigh(gram)
        if len(energy):  # no prompt of the landmarks has an active latent: no feature
            kept = energy > _NEGLIGIBLE * energy.max()
            energy, basis = energy[kept], basis @ rotation[:, kept]
        values = torch.empty(n, len(energy), dtype=cosines.dtype, device=basis.device)
        for first, last in _blocks(n, len(chosen)):
            values[first:last] = (cosines[first:last].double() @ basis).to(values.dtype)
        return cls(binary.select(chosen), basis, energy, values)

    def leave_one_out(self, moments: "Moments") -> LeaveOneOut:
        """Each of (a sample of 4,096 of) the triples predicted from all others, for every penalty at once.

        The error of triple n is (D_n - mu - (H (D - mu))_n) / (1 - H_nn), H = phi diag(1 / (energy + lambda)) phi^T; mu
        and the landmarks stay as they are.
        """
        values = self.values[moments.rows].double()
        spread = moments.spread.sum()
        best = LeaveOneOut(PENALTIES[-1], None)
        if not float(spread) > 0:
            return best
        for penalty in reversed(PENALTIES):
            shrunk = values / (self.energy + penalty)
            own = (shrunk * values).sum(1)  # H_nn
            fitted = (shrunk @ moments.second * shrunk).sum(1)
            error = (moments.spread - 2 * (shrunk * moments.cross).sum(1) + fitted).clamp(min=0) / (1 - own) ** 2
            share = float(error.sum() / spread)
            if best.share is None or share < best.share:
                best = LeaveOneOut(penalty, share)
        return best

    def moments(self, difference: SparseRows) -> "Moments":
        """What the fit and its errors need to know of the differences [n, d_out], in blocks of output latents."""
        n, kept, device = len(difference), len(self.energy), self.basis.device
        mean = difference.weighted_sum() / n
        rows = drawn(n, LEFT_OUT, device)
        sample = difference.select(rows)
        assert sample.value is not None
        entries = sample.value.double() * (sample.value.double() - 2 * mean[sample.column])
        spread = torch.bincount(sample.row, entries, len(rows)) + mean @ mean
        second = torch.zeros(kept, kept, dtype=torch.float64, device=device)
        cross = torch.zeros(len(rows), kept, dtype=torch.float64, device=device)
        by_output, of_sample, total = (
            difference.transposed(),
            sample.transposed(),
            self.values.sum(0, dtype=torch.float64),
        )
        for first, last in _blocks(difference.width, kept):
            product = _product(by_output.rows(first, last), self.values).double()
            product -= mean[first:last, None] * total
            second += product.t() @ product
            cross += _product(of_sample.rows(first, last).transposed(), product) - mean[None, first:last] @ product
        return Moments(mean, rows, spread, second, cross)

    def project(
        self, difference: SparseRows, mean: Float[Tensor, " d_out"], weights: Float[Tensor, "kept rank"]
    ) -> Float[Tensor, "rank d_out"]:
        """weights^T phi^T (D - mu), in float32."""
        by_output = difference.transposed()
        combined = torch.empty(len(self.values), weights.shape[1], dtype=self.values.dtype, device=weights.device)
        for first, last in _blocks(len(self.values), len(weights)):
            combined[first:last] = (self.values[first:last].double() @ weights).to(combined.dtype)
        total = combined.double().sum(0)
        found = torch.empty(weights.shape[1], difference.width, device=weights.device)
        for first, last in _blocks(difference.width, weights.shape[1]):
            product = _product(by_output.rows(first, last), combined).double()
            found[:, first:last] = (product - mean[first:last, None] * total).t()
        return found

    def by_latent(
        self, weights: Float[Tensor, "kept rank"]
    ) -> tuple[Int[Tensor, " active"], Float[Tensor, "active rank"]]:
        """The input latents that are active in a landmark, and their rows F: phi(x) weights is the sum of the rows of
        those that are active in x, over the root of the number of all that are active in x."""
        active = torch.bincount(self.landmarks.column, minlength=self.landmarks.width).nonzero()[:, 0]
        scale = self.landmarks.counts.double().clamp(min=1).rsqrt()[:, None]
        combined = scale * (self.basis @ weights)
        rows = _product(self.landmarks.transposed().select(active), combined)
        return active, rows.float()


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the differences D of the triples, in float64; ``rows`` are the triples that are left out one by one."""

    mean: Float[Tensor, " d_out"]
    rows: Int[Tensor, " s"]
    spread: Float[Tensor, " s"]
    """|D_n - mu|^2"""
    second: Float[Tensor, "kept kept"]
    """phi^T (D - mu) (D - mu)^T phi over all triples."""
    cross: Float[Tensor, "s kept"]
    """(D_n - mu) (D - mu)^T phi"""


def unexplained_share(prompt: SparseRows, difference: SparseRows) -> float | None:
    """`LeaveOneOut.share` of the differences of at most `LANDMARKS` triples (with more, of a sample of so many)."""
    rows = drawn(len(prompt), LANDMARKS, prompt.start.device)
    prompt, difference = prompt.select(rows), difference.select(rows)
    features = PromptFeatures.of(prompt)
    return features.leave_one_out(features.moments(difference)).share


def drawn(n: int, most: int, device: torch.device | str) -> Int[Tensor, " m"]:
    """All of n rows, or ``most`` of them drawn with a fixed seed, ascending."""
    if n <= most:
        return torch.arange(n, device=device)
    return torch.randperm(n, generator=torch.Generator().manual_seed(_SEED))[:most].sort().values.to(device)


def _cosines(binary: SparseRows, chosen: Int[Tensor, " m"]) -> Float[Tensor, "n m"]:
    """u_n . u_m of all rows with the chosen ones; 0 where one of them is empty."""
    n, landmarks = len(binary), binary.select(chosen)
    dtype = torch.float64 if n <= _DOUBLE else torch.float32
    cosines = torch.empty(n, len(chosen), dtype=dtype, device=binary.start.device)
    counted = binary.compressed()
    for first, last in _blocks(len(chosen), binary.width):
        # Numbers of shared latents: whole, so float32 holds them exactly.
        cosines[:, first:last] = counted @ landmarks.rows(first, last).dense().t().contiguous()
    scale = binary.counts.double().clamp(min=1).rsqrt()
    cosines *= scale[:, None]
    cosines *= scale[chosen]
    return cosines


def _product(rows: SparseRows, right: Float[Tensor, "width k"]) -> Float[Tensor, "row k"]:
    """rows @ right, in the precision of ``right``."""
    value = torch.ones(len(rows.column), device=right.device) if rows.value is None else rows.value
    return replace(rows, value=value.to(right.dtype)).compressed() @ right


def _blocks(n: int, width: int) -> Iterator[tuple[int, int]]:
    """(first, last) of successive blocks of rows that hold at most `BLOCK_NUMBERS` numbers each."""
    step = max(1, BLOCK_NUMBERS // max(width, 1))
    return ((first, min(first + step, n)) for first in range(0, n, step))
