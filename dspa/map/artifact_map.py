"""The map of an artifact: what steering queries, and what is saved with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dspa.map.condiff import ConditionalDifferenceMap, TruncatedMap, below
from dspa.map.sparse import OnDevice

_FACTORS = "factors."
_BLOCK = 1 << 22  # weights of a bootstrap made at a time: resamples x triples


@dataclass(frozen=True)
class MapOptions:
    """How scores are made of the fitted map; see the fields of `dspa.method.DSPA`."""

    truncate: int | None = 16
    demix: bool = False
    demix_ridge: float = 1e-3
    keep_factors: bool = True

    def __post_init__(self) -> None:
        if self.truncate is None and not self.keep_factors:
            raise ValueError(
                "truncate: null ships the exact factored map, so keep_factors: false leaves nothing; change one of them"
            )
        if self.demix and not self.keep_factors:
            raise ValueError("demix needs the gates of the triples; set keep_factors: true, or demix: false")


@dataclass(frozen=True, eq=False)
class ArtifactMap(OnDevice):
    """Scores of prompts, with what explains them: global mean, support, column sums, bootstrap intervals."""

    settings: MapOptions
    mean_difference: Float[Tensor, " d_out"]
    """The score of a map without conditions."""
    support: Int[Tensor, " d_in"]
    """N_i, the number of triples whose gate is open."""
    column_sums: Float[Tensor, " d_out"]
    """sum_i A_ij of the full map, exact also where rows are truncated."""
    n_triples: int
    truncated: TruncatedMap | None
    packed: dict[str, Tensor] | None
    """The factors as `ConditionalDifferenceMap.tensors` packs them; unpacked when first needed."""

    @classmethod
    def build(cls, full: ConditionalDifferenceMap, settings: MapOptions) -> "ArtifactMap":
        """From a fitted map; on its device."""
        return cls(
            settings=settings,
            mean_difference=full.mean_difference,
            support=full.support,
            column_sums=full.column_sums,
            n_triples=full.n_triples,
            truncated=None if settings.truncate is None else full.truncate(settings.truncate),
            packed=full.tensors() if settings.keep_factors else None,
        )

    @property
    def d_sae(self) -> int:
        """Width of the output SAE."""
        return len(self.mean_difference)

    @cached_property
    def factors(self) -> ConditionalDifferenceMap | None:
        """The full map, when it was kept: where the model is if scores are made of it, else in the host's memory."""
        if self.packed is None:
            return None
        online = self.truncated is None or self.settings.demix
        return ConditionalDifferenceMap.restore(self.packed).to(self.mean_difference.device if online else "cpu")

    def scores(
        self, selected: Int[Tensor, "batch k"], density: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """s(x) of each row's selected input latents (-1: none).

        A^T 1_S as fitted; with ``demix`` A_S^T M_S^-1 g_S(x) (arXiv 2603.21461, appendix A.4), for which ``density``,
        the prompt's rho, says which gates are open.
        """
        weights = self._demixing_weights(selected, density) if self.settings.demix else None
        if self.truncated is not None:
            return self.truncated.scores(selected, weights)
        assert self.factors is not None
        return self.factors.scores(selected, weights)

    def interval(
        self,
        selected: Int[Tensor, "batch k"],
        columns: Int[Tensor, "batch j"],
        *,
        n_resamples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> tuple[Float[Tensor, "batch j"], Float[Tensor, "batch j"]] | None:
        """(low, high) of A^T 1_S at the given columns, before truncation (-1: none; NaN for no column): percentile
        intervals from triples drawn again.

        Triples are drawn with replacement, the same draws for every row; thresholds and the set of supported latents
        stay as they were fitted. Under the strict gate a row is divided by its support among the drawn triples, and is
        zero in a draw without any. Deterministic for a seed, on every device. None when the factors are not kept, and
        with ``demix``, whose scores are another estimate.
        """
        full = self.factors
        if full is None or self.settings.demix:
            return None
        n, device = full.n_triples, full.always.device
        gates, changes = [], []
        for latents, wanted in zip(selected.to(device), columns.to(device), strict=True):
            latents = latents[latents >= 0]
            gates.append(full.open_gates(latents[full.row_scale[latents] > 0]))
            changes.append(full.differences(wanted.clamp(min=0)))
        generator = torch.Generator().manual_seed(seed)
        draws: list[list[Tensor]] = [[] for _ in gates]
        block = max(1, _BLOCK // n)
        for first in range(0, n_resamples, block):
            size = min(block, n_resamples - first)
            drawn = torch.randint(n, (size, n), generator=generator)
            times = torch.zeros(size, n).scatter_add_(1, drawn, torch.ones(size, n)).to(device)
            for row, (opened, change) in enumerate(zip(gates, changes, strict=True)):
                if full.gate == "strict":
                    support = times @ opened.t()
                    weighed = support + full.shrink
                    per_row = torch.where(weighed > 0, 1 / weighed.clamp(min=1e-30), 0.0)
                    per_triple = per_row @ (opened + full.shrink / n)
                else:
                    per_triple = opened.sum(0, keepdim=True) / n
                draws[row].append((times * per_triple) @ change.t())
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], device=device)
        ends = torch.stack([torch.cat(d).quantile(tails, dim=0) for d in draws], dim=1).to(columns.device)
        low, high = ends.masked_fill((columns < 0)[None], torch.nan)
        return low, high

    def sure(
        self, selected: Int[Tensor, "batch k"], columns: Int[Tensor, "batch j"], sign: Float[Tensor, "batch j"]
    ) -> Bool[Tensor, "batch j"]:
        """Whether the 95 % interval of each row's score at the given columns (-1: none) lies on the side of ``sign``.

        The interval is that of the untruncated score, 1.96 standard errors to either side. Raises ValueError where
        there is none: without factors, and with ``demix``.
        """
        full = self.factors
        if full is None or self.settings.demix:
            raise ValueError("the scores have no interval: that needs keep_factors: true and demix: false")
        sure = torch.zeros_like(columns, dtype=torch.bool)
        for row in range(len(columns)):
            latents, places = selected[row], (columns[row] >= 0).nonzero()[:, 0]
            wanted = columns[row, places].to(full.always.device)
            score, error = full.spread(latents[latents >= 0].to(full.always.device), wanted)
            sure[row, places] = (score.to(sign.device) * sign[row, places]) > 1.96 * error.to(sign.device)
        return sure

    def candidates(self, k: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """(augment, ablate): the k output latents with the largest and the smallest column sums, ties to the lower."""
        sums = self.column_sums
        return sums.sort(descending=True, stable=True).indices[:k], sums.sort(stable=True).indices[:k]

    def to(self, device: torch.device | str) -> "ArtifactMap":
        """The same on another device; the packed factors stay where they are until they are needed."""
        return self if self.mean_difference.device == torch.device(device) else super().to(device)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        tensors = {
            "map.mean_difference": self.mean_difference,
            "map.support": self.support.int(),
            "map.column_sums": self.column_sums,
            "map.n_triples": torch.tensor([self.n_triples]),
        }
        if self.truncated is not None:
            tensors |= {"map.columns": self.truncated.columns, "map.values": self.truncated.values}
        return tensors | {_FACTORS + name: tensor for name, tensor in (self.packed or {}).items()}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: MapOptions) -> "ArtifactMap":
        """Inverse of ``tensors``."""
        own, truncated = below(tensors, "map."), None
        if "columns" in own:
            truncated = TruncatedMap(own["columns"], own["values"], len(own["mean_difference"]))
        return cls(
            settings=settings,
            mean_difference=own["mean_difference"],
            support=own["support"].long(),
            column_sums=own["column_sums"],
            n_triples=int(own["n_triples"]),
            truncated=truncated,
            packed=below(tensors, _FACTORS) or None,
        )

    def _demixing_weights(
        self, selected: Int[Tensor, "batch k"], density: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch k"]:
        """v = M_S^-1 g_S(x), as weights of the rows that were fitted (the formula is for rows divided by N)."""
        full = self.factors
        assert full is not None
        weights = torch.zeros(selected.shape, device=density.device)
        for row, latents in enumerate(selected):
            places = ((latents >= 0) & (full.row_scale[latents.clamp(min=0)] > 0)).nonzero()[:, 0]
            latents = latents[places]
            rho = density[row, latents]
            opened = rho >= full.threshold[latents]
            if full.gate == "strict":
                opened &= rho > 0
            gates = full.open_gates(latents)
            moments = gates @ gates.t() / full.n_triples
            moments.diagonal().add_(self.settings.demix_ridge)
            solved = torch.linalg.solve(moments.double(), opened.double())
            weights[row, places] = (solved / (full.row_scale[latents].double() * full.n_triples)).float()
        return weights
