"""How well an SAE describes a base model on preference text: L0, explained variance, loss recovered."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dspa.saes.encoder import token_blocks
from dspa.saes.sae import ResidualSAE
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows, positions_of
from harness.model.decoder import captured, find_decoder, residual_of, with_residual


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt with one of its answers; tokens before ``start`` are counted with another text."""

    ids: tuple[int, ...]
    start: int


def texts_of(base: AlignedModel, triples: Sequence[Triple]) -> list[Text]:
    """Prompt + chosen and prompt + rejected of every triple; a triple's prompt counts once.

    The prompt's residuals are the same before either answer, so counting them twice would only weigh them double.
    Raises ValueError for a triple that does not fit the context.
    """
    texts = []
    for triple in triples:
        prompt, chosen, rejected = base.triple_ids(triple)
        texts += [Text((*prompt, *chosen), 0), Text((*prompt, *rejected), len(prompt))]
    return texts


@dataclass(frozen=True)
class TextBatch:
    """Right-padded texts; ``counted`` are the tokens that an SAE is meant to see (no BOS, EOS, pad)."""

    ids: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row pos"]
    counted: Bool[Tensor, "row pos"]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions_of(self.mask)}


def batch_texts(base: AlignedModel, texts: Sequence[Text], rows: int) -> Iterator[TextBatch]:
    """The texts in order, ``rows`` at a time."""
    special = torch.tensor(base.chat.special_ids, device=base.device)
    for begin in range(0, len(texts), rows):
        part = texts[begin : begin + rows]
        ids, mask = pad_rows([text.ids for text in part], base.chat.pad_id, side="right", device=base.device)
        start = torch.tensor([text.start for text in part], device=base.device)
        own = torch.arange(ids.shape[1], device=base.device) >= start[:, None]
        yield TextBatch(ids, mask, mask.bool() & own & ~torch.isin(ids, special))


@dataclass(frozen=True)
class Quality:
    """Figures over ``tokens`` tokens of text.

    ``l0``: mean number of active latents a token; ``silent``: the latents that are active on none of the tokens.
    ``explained_variance``: 1 - E|x - x^|^2 / E|x - E x|^2. ``loss``: the base's cross-entropy (nats) of the next token
    after those tokens; ``loss_sae`` with their residual replaced by the reconstruction, ``loss_zero`` by zero.
    """

    tokens: int
    l0: float
    explained_variance: float
    loss: float
    loss_sae: float
    loss_zero: float
    silent: frozenset[int] = field(default=frozenset(), repr=False)

    @property
    def loss_recovered(self) -> float:
        """1 where the reconstruction costs nothing, 0 where it is as bad as zero ablation."""
        return (self.loss_zero - self.loss_sae) / (self.loss_zero - self.loss)

    def to_dict(self) -> dict[str, int | float]:
        return asdict(self) | {"silent": len(self.silent), "loss_recovered": self.loss_recovered}


@torch.no_grad()
def measure_quality(
    base: AlignedModel, saes: Sequence[ResidualSAE], texts: Sequence[Text], *, limit: float | None, rows: int
) -> list[Quality]:
    """Quality of each of the SAEs, which share a layer, on the same tokens.

    Left as they are, and not counted: BOS, EOS, pad and tokens whose norm is above ``limit``. Raises ValueError when
    there is no token to measure.
    """
    (layer,) = {sae.layer for sae in saes}
    decoder = find_decoder(base.model)
    total, squares = torch.zeros(saes[0].d_model, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    losses, tokens, predictions = [0.0] * (2 + len(saes)), 0, 0
    errors = [0.0] * len(saes)
    active = [torch.zeros(sae.d_sae, dtype=torch.int64, device=base.device) for sae in saes]
    for batch in batch_texts(base, texts, rows):
        with captured(decoder, {layer}) as residual:
            logits = base.model(**batch.inputs, use_cache=False).logits
        counted = batch.counted & saes[0].fits_norm(residual[layer], limit)
        x = residual[layer][counted].float()
        tokens, predictions = tokens + len(x), predictions + int((counted[:, :-1] & batch.mask[:, 1:].bool()).sum())
        total += x.double().sum(0).cpu()
        squares += x.double().pow(2).sum().cpu()
        losses[0] += _loss(logits, batch, counted)
        losses[1] += _loss_with(base, decoder.layers[layer], batch, counted, torch.zeros_like(x))
        for index, sae in enumerate(saes):
            rebuilt, fired = reconstruct(sae, x)
            active[index] += fired
            errors[index] += float((x - rebuilt).double().pow(2).sum())
            losses[2 + index] += _loss_with(base, decoder.layers[layer], batch, counted, rebuilt)
    if predictions == 0:
        raise ValueError("the held-out texts have no token to measure on; give more triples")
    variance = float(squares / tokens - (total / tokens).pow(2).sum())
    loss, loss_zero, *loss_sae = (summed / predictions for summed in losses)
    return [
        Quality(
            tokens, int(active[i].sum()) / tokens, 1 - errors[i] / tokens / variance, loss, loss_sae[i], loss_zero,
            frozenset((active[i] == 0).nonzero().flatten().tolist()),
        )
        for i in range(len(saes))
    ]  # fmt: skip


def reconstruct(
    sae: ResidualSAE, residual: Float[Tensor, "token d_model"]
) -> tuple[Float[Tensor, "token d_model"], Int[Tensor, " d_sae"]]:
    """(SAELens' own reconstruction, number of tokens on which each latent is active), in blocks of tokens."""
    parts, active = [torch.empty_like(residual[:0])], torch.zeros(sae.d_sae, dtype=torch.int64, device=residual.device)
    for block in token_blocks(residual, sae.d_sae):
        latents = sae.sae.encode(block)
        active += (latents > 0).sum(0)
        parts.append(sae.sae.decode(latents))
    return torch.cat(parts), active


def _loss_with(
    base: AlignedModel,
    layer: nn.Module,
    batch: TextBatch,
    counted: Bool[Tensor, "row pos"],
    replacement: Float[Tensor, "token d_model"],
) -> float:
    def replace(_module: nn.Module, _args: tuple, output: Any) -> Any:
        residual = residual_of(output).clone()
        residual[counted] = replacement.to(residual.dtype)
        return with_residual(output, residual)

    handle = layer.register_forward_hook(replace)
    try:
        return _loss(base.model(**batch.inputs, use_cache=False).logits, batch, counted)
    finally:
        handle.remove()


def _loss(logits: Float[Tensor, "row pos vocab"], batch: TextBatch, counted: Bool[Tensor, "row pos"]) -> float:
    """Sum over counted tokens that have a successor; a row at a time, since logits in fp32 are large."""
    predicting = counted[:, :-1] & batch.mask[:, 1:].bool()
    return sum(
        float(cross_entropy(logits[row, :-1][keep].float(), batch.ids[row, 1:][keep], reduction="sum"))
        for row, keep in enumerate(predicting)
    )
