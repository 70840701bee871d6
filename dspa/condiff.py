"""The conditional-difference map A of DSPA, kept in factors.

A = diag(r) G^T Delta with gates G[k, i] = g_i(x_k) and differences Delta[k, j] over triples k (arXiv 2603.21461,
"Offline"). Nothing of size d_sae x d_sae is ever allocated, except by ``dense``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Gate = Literal["paper", "strict"]
_BLOCK = 1024  # rows of A made at a time while truncating


@dataclass(frozen=True, eq=False)
class ConditionalDifferenceMap:
    """Rows are input latents, columns output latents.

    Gates that are open for every triple are a flag in ``always`` and have no entry in ``gates``: under the literal
    gate that is every latent whose threshold is 0. ``gates`` and ``difference`` are sparse CSR.
    """

    gates: Tensor
    """[n, d_sae] CSR, 1 where a gate is open (columns with ``always`` left out)."""
    difference: Tensor
    """[n, d_sae] CSR, Delta."""
    always: Bool[Tensor, " d_sae"]
    row_scale: Float[Tensor, " d_sae"]
    """1/N (paper gate), or 1/N_i, 0 below ``min_support`` (strict gate)."""
    threshold: Float[Tensor, " d_sae"]
    """tau_i, the percentile of rho_i over the prompts."""
    gate: Gate

    @classmethod
    def estimate(
        cls,
        prompt_density: Float[Tensor, "n_prompts d_in"],
        response_difference: Float[Tensor, "n_responses d_out"],
        *,
        percentile: float = 95.0,
        gate: Gate = "paper",
        min_support: int = 5,
    ) -> "ConditionalDifferenceMap":
        """Estimate from the densities rho_i(x_k) and the differences Delta_k of N triples.

        tau_i is the ``percentile`` of rho_i over prompts (linear interpolation). ``gate='paper'``: g_i = 1[rho_i >=
        tau_i] literally and A = (1/N) sum_k g Delta^T; where tau_i = 0 the gate is always open and the row is the
        global mean. ``gate='strict'``: also rho_i > 0, rows divided by their support N_i, and rows with N_i <
        ``min_support`` are zero. Raises ValueError for shapes that do not match or options out of range.
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
        threshold = _percentile(prompt_density.float(), percentile)
        gates = prompt_density >= threshold
        if gate == "strict":
            gates &= prompt_density > 0
        support = gates.sum(0)
        always = support == n
        if gate == "paper":
            scale = torch.full_like(threshold, 1 / n)
        else:
            scale = torch.where(support >= min_support, 1 / support.clamp(min=1), 0.0)
        return cls(
            gates=_csr((gates & ~always).float()),
            difference=_csr(response_difference.float()),
            always=always,
            row_scale=scale,
            threshold=threshold,
            gate=gate,
        )

    @property
    def n_triples(self) -> int:
        return self.difference.shape[0]

    @property
    def support(self) -> Int[Tensor, " d_in"]:
        """N_i, the number of triples whose gate i is open."""
        open_rows = torch.zeros(len(self.always), dtype=torch.long, device=self.always.device)
        columns = self.gates.col_indices()
        open_rows.scatter_add_(0, columns, torch.ones_like(columns))
        return torch.where(self.always, self.n_triples, open_rows)

    @property
    def mean_difference(self) -> Float[Tensor, " d_out"]:
        """The global mean of Delta: what a map without conditions would be."""
        ones = torch.ones(self.n_triples, 1, device=self.always.device)
        return (self.difference.t() @ ones)[:, 0] / self.n_triples

    def rows(self, latents: Int[Tensor, " k"]) -> Float[Tensor, "k d_out"]:
        """The given rows of A."""
        chosen = torch.zeros(len(self.always), len(latents), device=self.always.device)
        chosen[latents, torch.arange(len(latents), device=chosen.device)] = 1.0
        return self._combine(chosen)

    def scores(self, selected: Int[Tensor, "batch k"]) -> Float[Tensor, "batch d_out"]:
        """s(x) = A^T 1_S of each row's selected input latents; entries of -1 stand for "none"."""
        return self._combine(_indicator(selected, len(self.always)))

    def _combine(self, weights: Float[Tensor, "d_in batch"]) -> Float[Tensor, "batch d_out"]:
        scaled = weights * self.row_scale[:, None]
        per_triple = self.gates @ scaled + scaled[self.always].sum(0)
        return (self.difference.t() @ per_triple).t()

    def dense(self) -> Float[Tensor, "d_in d_out"]:
        """A itself; for small d_sae only."""
        return self.rows(torch.arange(len(self.always), device=self.always.device))

    def truncate(self, top: int = 16) -> "TruncatedMap":
        """Keep the ``top`` largest and ``top`` smallest entries of each row (section "Offline", step 4)."""
        d_in, d_out = len(self.always), self.difference.shape[1]
        if not 1 <= top <= d_out:
            raise ValueError(f"top must be in [1, {d_out}], got {top}")
        columns, values = [], []
        for start in range(0, d_in, _BLOCK):
            block = self.rows(torch.arange(start, min(start + _BLOCK, d_in), device=self.always.device))
            largest, smallest = block.topk(top, dim=1), block.topk(top, dim=1, largest=False)
            index = torch.cat([largest.indices, smallest.indices], dim=1)
            value = torch.cat([largest.values, smallest.values], dim=1)
            # With fewer than 2 * top columns the two ends overlap; an entry must not count twice.
            rank = index.argsort(dim=1, stable=True)
            ordered = index.gather(1, rank)
            repeated = torch.zeros_like(ordered, dtype=torch.bool)
            repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
            columns.append(ordered)
            values.append(value.gather(1, rank).masked_fill(repeated, 0.0))
        return TruncatedMap(torch.cat(columns), torch.cat(values), d_out, self.mean_difference, self.support)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tensors = {"always": self.always, "row_scale": self.row_scale, "threshold": self.threshold}
        for name, matrix in (("gates", self.gates), ("difference", self.difference)):
            tensors[f"{name}.crow"] = matrix.crow_indices().int()
            tensors[f"{name}.col"] = matrix.col_indices().int()
        tensors["difference.values"] = self.difference.values()
        metadata = {
            "gate": self.gate,
            "shape": f"{self.difference.shape[0]},{len(self.always)},{self.difference.shape[1]}",
        }
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "ConditionalDifferenceMap":
        """Read what ``save`` wrote."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        n, d_in, d_out = map(int, metadata["shape"].split(","))

        def matrix(name: str, values: Tensor, width: int) -> Tensor:
            return torch.sparse_csr_tensor(
                tensors[f"{name}.crow"].long(),
                tensors[f"{name}.col"].long(),
                values,
                size=(n, width),
                check_invariants=True,
            )

        return cls(
            gates=matrix("gates", torch.ones(len(tensors["gates.col"])), d_in),
            difference=matrix("difference", tensors["difference.values"], d_out),
            always=tensors["always"],
            row_scale=tensors["row_scale"],
            threshold=tensors["threshold"],
            gate=metadata["gate"],  # type: ignore[arg-type]
        )


@dataclass(frozen=True, eq=False)
class TruncatedMap:
    """A with at most 2 * top entries a row: what ships with an artifact ("99.8 % less memory")."""

    columns: Int[Tensor, "d_in entries"]
    values: Float[Tensor, "d_in entries"]
    d_out: int
    mean_difference: Float[Tensor, " d_out"]
    support: Int[Tensor, " d_in"]

    def scores(self, selected: Int[Tensor, "batch k"]) -> Float[Tensor, "batch d_out"]:
        """s(x) = A^T 1_S over the kept entries; entries of -1 in ``selected`` stand for "none"."""
        present = (selected >= 0).float()[..., None]
        rows = selected.clamp(min=0)
        columns, values = self.columns[rows].flatten(1), (self.values[rows] * present).flatten(1)
        scores = torch.zeros(len(selected), self.d_out, device=self.values.device)
        return scores.scatter_add_(1, columns, values)

    def to(self, device: str) -> "TruncatedMap":
        """The same on another device."""
        columns, values, mean = self.columns.to(device), self.values.to(device), self.mean_difference.to(device)
        return TruncatedMap(columns, values, self.d_out, mean, self.support.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {
            "map.columns": self.columns.int(),
            "map.values": self.values,
            "map.mean_difference": self.mean_difference,
            "map.support": self.support.int(),
        }

    @classmethod
    def restore(cls, tensors: dict[str, Tensor]) -> "TruncatedMap":
        """Inverse of ``tensors``."""
        mean = tensors["map.mean_difference"]
        columns, support = tensors["map.columns"].long(), tensors["map.support"].long()
        return cls(columns, tensors["map.values"], len(mean), mean, support)


def _indicator(selected: Int[Tensor, "batch k"], width: int) -> Float[Tensor, "width batch"]:
    chosen = torch.zeros(width, len(selected), device=selected.device)
    present = (selected >= 0).float().t()
    return chosen.scatter_add_(0, selected.clamp(min=0).t(), present)


def _percentile(values: Float[Tensor, "n d"], percentile: float) -> Float[Tensor, " d"]:
    """Linear interpolation between order statistics, as numpy; `torch.quantile` refuses large inputs."""
    position = (len(values) - 1) * percentile / 100
    low = int(position)
    ordered = values.sort(dim=0).values
    high = min(low + 1, len(values) - 1)
    # Equal neighbours must give exactly that value, or `>=` fails on ties.
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _csr(matrix: Float[Tensor, "n d"]) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return matrix.to_sparse_csr()
