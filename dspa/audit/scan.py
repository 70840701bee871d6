"""One pass over texts up to the deepest layer that is needed, batch by batch: memory does not grow with the texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dspa.audit.texts import Text
from dspa.saes.quality import reconstruct
from dspa.saes.sae import ResidualSAE
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows
from harness.model.decoder import find_decoder
from harness.model.residuals import early_residuals

_TOKENS_A_BATCH = 4096


@dataclass(frozen=True)
class Batch:
    """Some texts (``rows``: which, ``lengths`` in tokens, padded on the right) with the residual stream after each
    layer; ``kind`` is -1 where a token is not counted."""

    rows: list[int]
    lengths: list[int]
    ids: Int[Tensor, "row pos"]
    kind: Int[Tensor, "row pos"]
    residual: dict[int, Float[Tensor, "row pos d_model"]]

    def counted(self, sae: ResidualSAE, limit: float | None) -> Bool[Tensor, "row pos"]:
        """Tokens with a kind and, for SAEs with a norm filter, of a norm up to ``limit``."""
        return (self.kind >= 0) & sae.fits_norm(self.residual[sae.layer], limit)


def residual_batches(model: AlignedModel, texts: Sequence[Text], layers: set[int]) -> Iterator[Batch]:
    """The residual stream of the unsteered model over all texts, texts of similar length together."""
    decoder = find_decoder(model.model)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i].ids), i))
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, _TOKENS_A_BATCH // len(texts[order[start]].ids))]
        start += len(rows)
        ids, mask = pad_rows([texts[r].ids for r in rows], model.chat.pad_id, side="right", device=model.device)
        kind, _ = pad_rows([texts[r].kinds for r in rows], -1, side="right", device=model.device)
        with torch.no_grad():
            residual = early_residuals(decoder, layers, ids, mask)
        yield Batch(rows, [len(texts[r].ids) for r in rows], ids, kind, residual)


class Measurement:
    """What one SAE does on the texts, added up batch by batch.

    ``active``: [kind, d_sae], tokens of each kind on which a latent fires; ``tokens``: [kind]; ``skipped``: tokens
    that the SAE's norm filter leaves out.
    """

    def __init__(self, sae: ResidualSAE, n_kinds: int, limit: float | None = None) -> None:
        self.sae, self.limit = sae, limit
        self.active = torch.zeros(n_kinds, sae.d_sae, dtype=torch.float64)
        self.tokens = torch.zeros(n_kinds, dtype=torch.long)
        self.skipped = 0
        self._error = 0.0
        self._sum = torch.zeros(sae.d_model, dtype=torch.float64)
        self._squares = 0.0

    def add(self, batch: Batch) -> None:
        """Count one batch."""
        counted = batch.counted(self.sae, self.limit)
        self.skipped += int((batch.kind >= 0).sum() - counted.sum())
        kind, order = batch.kind[counted].sort(stable=True)
        residual = batch.residual[self.sae.layer][counted][order].float()
        if len(residual) == 0:
            return
        self.active += self.sae.encoder.counts(residual, kind, len(self.tokens)).double().cpu()
        self.tokens += kind.bincount(minlength=len(self.tokens)).cpu()
        rebuilt, _ = reconstruct(self.sae, residual)
        self._error += float((rebuilt - residual).double().pow(2).sum())
        self._sum += residual.double().sum(0).cpu()
        self._squares += float(residual.double().pow(2).sum())

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of all counted tokens on which each latent fires."""
        return (self.active.sum(0) / self.tokens.sum().clamp(min=1)).float()

    @property
    def density_by_kind(self) -> Float[Tensor, "kind d_sae"]:
        """The same within each kind; NaN for a kind without tokens."""
        return (self.active / self.tokens[:, None]).float()

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a token."""
        return float(self.active.sum() / self.tokens.sum())

    @property
    def explained_variance(self) -> float:
        """1 - squared error of the reconstruction / variance of the residual stream around its mean."""
        count = int(self.tokens.sum())
        variance = self._squares - float(self._sum.pow(2).sum()) / count
        return 1 - self._error / variance
