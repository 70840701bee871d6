"""The conditional-difference map A of DSPA, kept in factors.

A = diag(r) G^T Delta with gates G[k, i] = g_i(x_k) and differences Delta[k, j] over triples k (arXiv 2603.21461,
"Offline"). Nothing of size d_sae x d_sae or n x d_sae is ever allocated, except by ``dense``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dspa.map.sparse import BLOCK_NUMBERS, OnDevice, SparseRows, column_percentile, pack, unpack

Gate = Literal["paper", "strict"]
_TIED_NUMBERS = 1 << 22  # keys of tied rows made at a time


@dataclass(frozen=True, eq=False)
class TruncatedMap(OnDevice):
    """A as it ships: at most 2 * top entries a row ("99.8 % less memory", arXiv 2603.21461, "Offline", step 4).

    Unused places hold column 0 and value 0.
    """

    columns: Int[Tensor, "d_in entries"]
    """int32"""
    values: Float[Tensor, "d_in entries"]
    d_out: int

    def scores(
        self, selected: Int[Tensor, "batch k"], weights: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch d_out"]:
        """s(x) = A^T 1_S over the kept entries, or the sum of rows by ``weights``; -1 in ``selected``: none."""
        present = (selected >= 0).float()
        weights = present if weights is None else weights * present
        rows = selected.clamp(min=0)
        # In float64, so that ties stay ties whatever the order of addition, which an accelerator does not promise.
        columns = self.columns[rows].flatten(1).long()
        values = (self.values[rows].double() * weights[..., None]).flatten(1)
        scores = torch.zeros(len(selected), self.d_out, dtype=torch.float64, device=values.device)
        return scores.scatter_add_(1, columns, values).float()


@dataclass(frozen=True, eq=False)
class ConditionalDifferenceMap(OnDevice):
    """Rows are input latents, columns output latents.

    Gates that are open for every triple are a flag in ``always`` and have no entry in ``gates``: under the literal
    gate that is every latent whose threshold is 0.
    """

    gates: SparseRows
    """[n, d_in], an entry where a gate is open (columns with ``always`` left out)."""
    difference: SparseRows
    """[n, d_out], Delta."""
    always: Bool[Tensor, " d_in"]
    row_scale: Float[Tensor, " d_in"]
    """1/N (paper gate), 1/N_i, 0 below ``min_support`` (strict gate), or 1/(N_i + shrink)."""
    threshold: Float[Tensor, " d_in"]
    """tau_i, the percentile of rho_i over the prompts."""
    gate: Gate
    shrink: float = 0.0
    """Pseudo-triples of mean Delta in every row; so each triple counts as if its gates were open by shrink / N more."""

    def __repr__(self) -> str:
        shape = f"{self.gates.width} x {self.difference.width}"
        return f"<ConditionalDifferenceMap: {shape} of {len(self.gates.start) - 1} triples, {self.gate} gate>"

    @classmethod
    def estimate(
        cls,
        prompt_density: Float[Tensor, "n_prompts d_in"] | SparseRows,
        response_difference: Float[Tensor, "n_responses d_out"] | SparseRows,
        *,
        percentile: float = 95.0,
        gate: Gate = "paper",
        min_support: int = 5,
        shrink: float = 0.0,
    ) -> "ConditionalDifferenceMap":
        """Estimate from the densities rho_i(x_k) and the differences Delta_k of N triples, dense or sparse.

        tau_i is the ``percentile`` of rho_i over prompts (linear interpolation). ``gate='paper'``: g_i = 1[rho_i >=
        tau_i] literally and A = (1/N) sum_k g Delta^T; where tau_i = 0 the gate is always open and the row is the
        global mean. ``gate='strict'``: also rho_i > 0, rows divided by their support N_i, and rows with N_i <
        ``min_support`` are zero. With ``shrink`` > 0 (strict gate only) there is no such cut: a row is drawn toward the
        global mean by so many triples' worth of it, (sum_k g_i Delta + shrink * mean) / (N_i + shrink), and a row
        without support is the global mean. Raises ValueError for shapes that do not match, options out of range, a
        negative density, and numbers that are not finite.
        """
        n = len(prompt_density)
        if n == 0 or len(response_difference) != n:
            raise ValueError(f"need the same number (> 0) of rows, got {n} and {len(response_difference)}")
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile must be in [0, 100], got {percentile}")
        if gate not in get_args(Gate):
            raise ValueError(f"unknown gate {gate!r}; known: {', '.join(get_args(Gate))}")
        if min_support < 1:
            raise ValueError(f"min_support must be at least 1, got {min_support}")
        if not 0 <= shrink < torch.inf:
            raise ValueError(f"shrink must be a number of triples from 0 on, got {shrink}")
        if shrink and gate != "strict":
            raise ValueError(f"shrink is for rows divided by their support: gate 'strict', not {gate!r}")
        density, difference = _sparse(prompt_density), _sparse(response_difference)
        assert density.value is not None and difference.value is not None
        if not bool(torch.isfinite(difference.value).all()):
            raise ValueError("a response difference is not finite; differences of shares are between -1 and 1")
        threshold = column_percentile(density, percentile)
        opened = (density.value > 0) & (density.value >= threshold[density.column])
        support = torch.bincount(density.column[opened], minlength=density.width)
        always = support == n
        if gate == "paper":
            always |= threshold == 0  # even where the latent never fires: rho = 0 >= 0
            scale = torch.full_like(threshold, 1 / n)
        elif shrink:
            scale = 1 / (support + shrink)
        else:
            scale = torch.where(support >= min_support, 1 / support.clamp(min=1), 0.0)
        gates = replace(density.keep(opened & ~always[density.column]), value=None)
        return cls(gates, difference, always, scale, threshold, gate, shrink)

    @property
    def n_triples(self) -> int:
        return len(self.difference)

    @cached_property
    def support(self) -> Int[Tensor, " d_in"]:
        """N_i, the number of triples whose gate i is open."""
        opened = torch.bincount(self.gates.column, minlength=self.gates.width)
        return torch.where(self.always, self.n_triples, opened)

    @cached_property
    def mean_difference(self) -> Float[Tensor, " d_out"]:
        """The global mean of Delta: what a map without conditions would be."""
        return self.difference.mean()

    @cached_property
    def column_sums(self) -> Float[Tensor, " d_out"]:
        """sum_i A_ij over all input latents, by which the paper ranks output latents for its audit."""
        weight = torch.bincount(self.gates.row, self.row_scale[self.gates.column].double(), self.n_triples)
        # Not in place: without a single entry bincount gives integers.
        weight = weight + self.row_scale[self.always].double().sum()
        weight = weight + self.shrink / self.n_triples * self.row_scale.double().sum()
        return self.difference.weighted_sum(weight).float()

    def scores(
        self, selected: Int[Tensor, "batch k"], weights: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch d_out"]:
        """s(x) = A^T 1_S of each row's selected input latents, or the sum of rows of A by ``weights``; -1: none."""
        latents, present = selected.clamp(min=0), (selected >= 0).float()
        weights = (present if weights is None else weights * present) * self.row_scale[latents]
        opened = self._by_latent.select(latents.flatten())
        per_triple = torch.zeros(len(selected), self.n_triples, device=weights.device)
        place = (opened.row // selected.shape[1]) * self.n_triples + opened.column
        per_triple.view(-1).index_add_(0, place, weights.flatten()[opened.row])
        per_triple += (weights * (self.always[latents] + self.shrink / self.n_triples)).sum(1, keepdim=True)
        return (self._by_output.compressed() @ per_triple.t()).t()

    def rows(
        self, latents: Int[Tensor, " k"], *, dense_difference: Float[Tensor, "n d_out"] | None = None
    ) -> Float[Tensor, "k d_out"]:
        """The given rows of A, dense: as a product of blocks of triples, which suits many rows.

        Whoever asks for many blocks of rows may give Delta as ``dense_difference``, where it fits into a block.
        """
        opened = self._by_latent.select(latents)
        if dense_difference is not None:
            result = opened.dense() @ dense_difference
        else:
            result = torch.zeros(len(latents), self.difference.width, device=self.always.device)
            for first, last in self.difference.blocks():
                result += opened.columns(first, last).dense() @ self.difference.rows(first, last).dense()
        if self.shrink:
            result += self.shrink * self.mean_difference
        result *= self.row_scale[latents, None]
        same = self.always[latents]
        result[same] = self._global_rows(latents[same])
        return result

    def open_gates(self, latents: Int[Tensor, " k"]) -> Float[Tensor, "k n"]:
        """g_i(x_k) of the given latents over the triples."""
        opened = self._by_latent.select(latents).dense()
        opened[self.always[latents]] = 1.0
        return opened

    def differences(self, latents: Int[Tensor, " k"]) -> Float[Tensor, "k n"]:
        """Delta_kj of the given output latents over the triples."""
        return self._by_output.select(latents).dense()

    def spread(
        self, latents: Int[Tensor, " k"], columns: Int[Tensor, " j"]
    ) -> tuple[Float[Tensor, " j"], Float[Tensor, " j"]]:
        """(s_j, its standard error) of A^T 1_S at some columns, by the infinitesimal jackknife over the triples.

        The score is a function of the triples' weights t_k, all 1 here: row i is sum_k t_k (g_ik + shrink/N) Delta_k
        over sum_k t_k g_ik + shrink (strict gate), or sum_k t_k g_ik Delta_k / N. Its slopes in t are psi_k =
        c_k Delta_k - sum_i row_scale_i g_ik row_i, c_k being the triple's weight in the score (without the second term
        under the paper gate, which divides by a constant); the variance is sum_k (psi_k - mean psi)^2. Thresholds are
        held fixed. It is what the bootstrap of `ArtifactMap.interval` tends to, without draws.
        """
        gates, delta = self.open_gates(latents).double(), self.differences(columns).double()
        scale, extra = self.row_scale[latents].double(), self.shrink / self.n_triples
        weight = scale @ (gates + extra)
        rows = scale[:, None] * ((gates + extra) @ delta.t())
        slopes = weight * delta
        if self.gate == "strict":
            slopes -= rows.t() @ (scale[:, None] * gates)
        slopes -= slopes.mean(1, keepdim=True)
        return rows.sum(0).float(), slopes.square().sum(1).sqrt().float()

    def dense(self) -> Float[Tensor, "d_in d_out"]:
        """A itself; for small d_sae only."""
        return self.rows(torch.arange(len(self.always), device=self.always.device))

    def truncate(self, top: int = 16) -> TruncatedMap:
        """Keep the ``top`` largest and ``top`` smallest entries of each row (section "Offline", step 4).

        Ties go to the lower column.
        """
        d_in, d_out, device = len(self.always), self.difference.width, self.always.device
        if not 1 <= top <= d_out:
            raise ValueError(f"top must be in [1, {d_out}], got {top}")
        columns = torch.zeros(d_in, 2 * top, dtype=torch.int32, device=device)
        values = torch.zeros(d_in, 2 * top, device=device)
        unsupported = self.support == 0  # with `shrink` these rows are the global mean, too
        same = ((self.always | unsupported) & (self.row_scale > 0)).nonzero()[:, 0]
        columns[same], values[same] = row_extremes(self._global_rows(same[:1]), top)
        own = (~self.always & (self.support > 0) & (self.row_scale > 0)).nonzero()[:, 0]
        dense = self.difference.dense() if self.n_triples * d_out <= BLOCK_NUMBERS else None
        distinct, place = self._distinct(own)
        for latents in distinct.split(max(1, BLOCK_NUMBERS // d_out)):
            block = self.rows(latents, dense_difference=dense)
            columns[latents], values[latents] = row_extremes(block, top)
        columns[own], values[own] = columns[distinct][place], values[distinct][place]
        return TruncatedMap(columns, values, d_out)

    def _distinct(self, latents: Int[Tensor, " k"]) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " k"]]:
        """One latent of each pattern of open gates, and which of them stands for each of ``latents``.

        Equal patterns have equal rows. They are common with few triples, where all gates fit into one integer.
        """
        if self.n_triples > 62:
            return latents, torch.arange(len(latents), device=latents.device)
        pattern = torch.zeros(self.gates.width, dtype=torch.long, device=latents.device)
        pattern.index_add_(0, self.gates.column.long(), 1 << self.gates.row)
        _, place = pattern[latents].unique(return_inverse=True)
        distinct = torch.zeros(int(place.max()) + 1 if len(place) else 0, dtype=torch.long, device=latents.device)
        distinct[place] = latents
        return distinct, place

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors: packed, exact."""
        shape = [self.n_triples, self.gates.width, self.difference.width, get_args(Gate).index(self.gate)]
        tensors = {"shape": torch.tensor(shape)}
        tensors |= {"always": self.always, "row_scale": self.row_scale, "threshold": self.threshold}
        if self.shrink:
            tensors["shrink"] = torch.tensor([self.shrink], dtype=torch.float64)
        for name, rows in (("gates", self.gates), ("difference", self.difference)):
            tensors |= {f"{name}.{part}": tensor for part, tensor in pack(rows).items()}
        return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> "ConditionalDifferenceMap":
        """Inverse of ``tensors``; raises ValueError, saying what is wrong, for anything else."""

        def vector(name: str, length: int, dtype: torch.dtype) -> Tensor:
            found = tensors.get(name)
            if found is None or tuple(found.shape) != (length,) or found.dtype != dtype:
                raise ValueError(f"tensor {name!r} is missing, or is not {length} numbers of {dtype}")
            return found.cpu()

        n, d_in, d_out, gate = vector("shape", 4, torch.int64).tolist()
        always = vector("always", d_in, torch.bool)
        row_scale, threshold = (vector(name, d_in, torch.float32) for name in ("row_scale", "threshold"))
        if min(n, d_in, d_out) < 1 or gate not in (0, 1):
            raise ValueError(f"the shape {[n, d_in, d_out, gate]} is not that of a map")
        gates, difference = unpack(below(tensors, "gates."), n, d_in), unpack(below(tensors, "difference."), n, d_out)
        if gates.value is not None or difference.value is None:
            raise ValueError("gates have no values and differences have some; here it is otherwise")
        shrink = float(vector("shrink", 1, torch.float64)) if "shrink" in tensors else 0.0
        return cls(gates, difference, always, row_scale, threshold, get_args(Gate)[gate], shrink)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        save_file(self.tensors(), path)

    @classmethod
    def load(cls, path: str | Path) -> "ConditionalDifferenceMap":
        """Read what ``save`` wrote; raises ValueError, naming the file, for anything else."""
        try:
            return cls.restore(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is not a saved conditional-difference map: {error}") from error

    @cached_property
    def _by_latent(self) -> SparseRows:
        return self.gates.transposed()

    @cached_property
    def _by_output(self) -> SparseRows:
        return self.difference.transposed()

    def _global_rows(self, latents: Int[Tensor, " k"]) -> Float[Tensor, "k d_out"]:
        scale = self.row_scale[latents] * (self.support[latents] + self.shrink)
        return scale[:, None] * self.mean_difference


def budget_percentile(n_triples: int, min_support: int) -> float:
    """The gate percentile for a number of triples: 95 (the paper's) where at least 3 * ``min_support`` of them are
    above it, else the one that leaves so many to a latent which fires on every prompt, and 0 when there are no more.

    Why three times: a row is to be there whichever triples were drawn. Its support among others is about a Poisson
    number; of mean ``min_support`` it falls short of ``min_support`` in 44 % of the draws, of twice that in 3 %, of
    three times in 0.1 % (for the default, 5). And of order statistics 0 to N-1 exactly m are above the percentile
    100 (N - m - 1/2) / (N - 1), the middle between two of them, where rounding does not matter.
    """
    wanted = 3 * min_support
    if n_triples <= wanted:
        return 0.0
    return min(95.0, 100 * (n_triples - wanted - 0.5) / (n_triples - 1))


def _sparse(matrix: Float[Tensor, "n d"] | SparseRows) -> SparseRows:
    return matrix if isinstance(matrix, SparseRows) else SparseRows.from_dense(matrix.float())


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def row_extremes(
    block: Float[Tensor, "row d_out"], top: int
) -> tuple[Int[Tensor, "row entries"], Float[Tensor, "row entries"]]:
    """Columns (int32) and values of the ``top`` largest and smallest entries of each row, ties to the lower column.

    Zeros are not kept, and an entry that is among both ends is kept once.
    """
    column = torch.cat([extreme_columns(block, top, largest=largest) for largest in (True, False)], dim=1)
    ordered = column.sort(dim=1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    value = block.gather(1, ordered).masked_fill(repeated, 0.0)
    return ordered.masked_fill(value == 0, 0).int(), value


def extreme_columns(values: Float[Tensor, "row width"], k: int, *, largest: bool = True) -> Int[Tensor, "row kept"]:
    """Columns of the ``k`` (at most width) largest or smallest entries of each row, most extreme first.

    Of entries that tie at the cut-off those in lower columns are taken, except for zeros, which no caller keeps.
    Densities and their differences are shares of few tokens, so ties are common; `topk` alone takes any of them.
    """
    k = min(k, values.shape[1])
    value, column = values.topk(min(k + 1, values.shape[1]), dim=1, largest=largest)
    tied = ((value[:, k:] == value[:, k - 1 : k]).any(1) & (value[:, k - 1] != 0)).nonzero()[:, 0]
    column = column[:, :k]
    for rows in tied.split(max(1, _TIED_NUMBERS // values.shape[1])):
        bits = values[rows].view(torch.int32).long()
        key = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
        place = torch.arange(values.shape[1], device=values.device)
        column[rows] = (((key if largest else -key) << 32) - place).topk(k, dim=1).indices
    return column
