"""What each output latent does to the preference margin, to first order: one backward pass a batch, no weight moves.

The margin of a triple is log p(chosen) / tokens - log p(rejected) / tokens, in nats per token (the end of the turn
counts as a token), as in the benchmark `preference`. Its gradient with respect to the residual stream h after the
output SAE's layer gives, for a change of latent j by c_j at a position, the effect c_j W_dec_j . dmargin/dh.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from dspa.map.sparse import SparseRows
from dspa.saes.encoder import Encoder, token_blocks
from dspa.saes.sae import ResidualSAE, sae_sizes
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.refs import SAERef
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows, positions_of
from harness.model.decoder import differentiable_after, find_decoder
from harness.model.intervention import Positions
from harness.model.residuals import TripleIds, batches_by_length, encode_triples

_LOGITS = 1 << 27  # numbers in the logits of a batch, where one triple does not have more: 512 MB of float32
Change = Callable[[Float[Tensor, "token d_sae"]], Float[Tensor, "token d_sae"]]
"""Latents of tokens -> what an edit adds to each of them."""


@dataclass(frozen=True)
class MarginGradient:
    """Of a batch of triples: the rows are chosen, rejected, chosen, ...; positions begin with the last prompt token
    (``positions: all``: with the first)."""

    residual: Float[Tensor, "row pos d_model"]
    gradient: Float[Tensor, "row pos d_model"]
    """d margin / d residual, in nats per token."""
    steered: Bool[Tensor, "row pos"]
    """Where steering would edit: no padding, no special tokens."""
    margin: Float[Tensor, " triple"]


def margin_gradient(
    base: AlignedModel, batch: Sequence[TripleIds], layer: int, *, positions: Positions, meter: Meter
) -> MarginGradient:
    """One forward and backward of the unsteered ``base``: what precedes the steered positions is passed once for both
    answers and has no graph, nor have the layers up to ``layer``; no weight gets a gradient."""
    device, pad, end = base.device, base.chat.pad_id, base.chat.end_id
    cut = [_steered_from(one, positions) for one in batch]
    contexts = [list(one.prompt[:start]) for one, start in zip(batch, cut, strict=True)]
    openings = [list(one.prompt[start:]) for one, start in zip(batch, cut, strict=True)]
    answers = [list(answer) for one in batch for answer in (one.chosen, one.rejected)]
    ids, mask = pad_rows([openings[i // 2] + answer for i, answer in enumerate(answers)], pad, side="right")
    targets, weights = torch.zeros_like(ids), torch.zeros(ids.shape)
    for row, answer in enumerate(answers):
        predicting = slice(len(openings[row // 2]) - 1, len(openings[row // 2]) + len(answer))
        targets[row, predicting] = torch.tensor([*answer, end])
        weights[row, predicting] = (1 if row % 2 == 0 else -1) / (len(answer) + 1)
    ids, mask, targets, weights = (tensor.to(device) for tensor in (ids, mask, targets, weights))
    past = max(map(len, contexts))
    trained, passed = int(mask.sum()), sum(map(len, contexts))
    signature = ("margin", len(batch), past, ids.shape[1], layer)
    with meter.step(signature, tokens=trained, reference_tokens=passed, kind="train"):
        cache, whole = None, mask
        if past:
            before, before_mask = pad_rows(contexts, pad, side="left", device=device)
            cache = DynamicCache(config=base.model.config)
            with torch.no_grad():
                find_decoder(base.model).stack(
                    input_ids=before,
                    attention_mask=before_mask,
                    position_ids=positions_of(before_mask),
                    past_key_values=cache,
                    use_cache=True,
                )
            cache.batch_repeat_interleave(2)
            whole = torch.cat([before_mask.repeat_interleave(2, dim=0), mask], dim=1)
        with differentiable_after(find_decoder(base.model), layer) as leaves:
            logits = base.model(
                input_ids=ids,
                attention_mask=whole,
                position_ids=positions_of(whole)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
            logits = logits.float()
            values = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
            margin = (values * weights).sum(1).view(-1, 2).sum(1)
        (gradient,) = torch.autograd.grad(margin.sum(), leaves)
    special = torch.tensor(base.chat.special_ids, device=device)
    steered = mask.bool() & ~torch.isin(ids, special)
    return MarginGradient(leaves[0].detach().to(device), gradient.float().to(device), steered, margin.detach())


@torch.no_grad()
def latent_effects(
    encoder: Encoder,
    residual: Float[Tensor, "token d_model"],
    gradient: Float[Tensor, "token d_model"],
    row: Int[Tensor, " token"],
    n_rows: int,
    change: Change | None = None,
) -> Float[Tensor, "n_rows d_sae"]:
    """First-order effect of each latent on each row's margin, summed over the row's tokens: of its presence (its
    activation times W_dec_j . gradient), or of what ``change`` adds to it. Blockwise, as `Encoder.counts`."""
    d_sae = len(encoder.bias)
    effects = encoder.bias.new_zeros(n_rows, d_sae)
    first = 0
    for block in token_blocks(residual, d_sae):
        part = slice(first, first + len(block))
        latents = encoder.encode(block)
        scale = encoder.normalised(block[None])[1][0]
        pull = (gradient[part] * scale) @ encoder.decoder.T
        if encoder.k is not None and encoder.gain is not None:
            pull = pull / encoder.gain
        moved = latents if change is None else change(latents)
        # Not a bare product: where nothing moves, an activation or a gradient that is not finite must not spread.
        effects.index_add_(0, row[part], torch.where(moved != 0, moved * pull, 0.0))
        first += len(block)
    return effects


def margin_batches(
    base: AlignedModel, encoded: Sequence[TripleIds], layer: int, *, positions: Positions, meter: Meter, batch_size: int
) -> Iterator[tuple[list[int], MarginGradient]]:
    """(triples, their `margin_gradient`), batch by batch, of this process's (`Meter.shared`).

    No batch's logits take much more than 512 MB unless one triple's do.
    """
    vocabulary = len(base.model.get_output_embeddings().weight)  # type: ignore[arg-type]
    batches = batches_by_length(encoded, _triples_a_batch(encoded, positions, vocabulary, batch_size))
    for rows in meter.shared(batches):
        yield rows, margin_gradient(base, [encoded[r] for r in rows], layer, positions=positions, meter=meter)


def attribute_margins(
    base: AlignedModel,
    triples: Sequence[Triple],
    *,
    output_sae: ResidualSAE,
    norm_limit: float | None,
    positions: Positions,
    meter: Meter,
    batch_size: int,
) -> SparseRows:
    """Delta of ``select: causal``: [triple, d_sae], the first-order effect of each output latent's presence on the
    triple's margin, over both answers and the positions that steering edits. Negative: ablating it raises the margin.

    In the place of the density difference (`dspa.density.Densities.difference`), and streamed like it.
    """
    encoded = encode_triples(base, triples)
    parts: list[tuple[list[int], SparseRows]] = []
    options = {"positions": positions, "meter": meter, "batch_size": batch_size}
    for rows, found in margin_batches(base, encoded, output_sae.layer, **options):
        counted = found.steered & output_sae.fits_norm(found.residual, norm_limit)
        tokens = found.residual[counted], found.gradient[counted], counted.nonzero()[:, 0] // 2
        with meter.step(("attribute", len(tokens[0]), len(rows)), tokens=0, kind="forward"):
            effects = latent_effects(output_sae.encoder, *tokens, len(rows))
        parts.append((rows, SparseRows.from_dense(effects).to("cpu")))
    parts = meter.ranks.collect(parts)
    back = torch.tensor([row for rows, _ in parts for row in rows], dtype=torch.long).argsort()
    return SparseRows.concatenate([part for _, part in parts], output_sae.d_sae).select(back)


def predict_attribution(
    base: AlignedModel,
    triples: Sequence[Triple],
    *,
    output_sae: SAERef,
    positions: Positions,
    rates: Rates,
    batch_size: int,
) -> int:
    """FLOPs that `attribute_margins` is going to execute, if no token is left out for its norm."""
    encoded = encode_triples(base, triples)
    special = set(base.chat.special_ids)
    layer, d_model, d_sae = sae_sizes(output_sae)
    steered = sum(
        token not in special
        for one in encoded
        for answer in (one.chosen, one.rejected)
        for token in [*one.prompt[_steered_from(one, positions) :], *answer]
    )
    total = 2 * 2 * d_model * d_sae * steered  # the encode, and every decoder row times the gradient
    body, gradient = rates.body(), rates.gradient(layer)
    vocabulary = rates.head // (2 * rates.model.get_output_embeddings().weight.shape[1])
    for rows in batches_by_length(encoded, _triples_a_batch(encoded, positions, vocabulary, batch_size)):
        batch = [encoded[r] for r in rows]
        past = max(_steered_from(one, positions) for one in batch)
        fed = max(_fed(one, positions) for one in batch)
        total += body.of(len(batch), past) + gradient.of(2 * len(batch), fed, past=past)
        total += 2 * len(batch) * fed * 2 * rates.head  # its product, and the gradient of what it reads
    return total


def _steered_from(one: TripleIds, positions: Positions) -> int:
    """The first steered position."""
    return 0 if positions == "all" else len(one.prompt) - 1


def _fed(one: TripleIds, positions: Positions) -> int:
    """Positions in the pass with a graph: all but the answer's end of turn."""
    return len(one) - _steered_from(one, positions)


def _triples_a_batch(encoded: Sequence[TripleIds], positions: Positions, vocabulary: int, batch_size: int) -> int:
    longest = max(_fed(one, positions) for one in encoded)
    return min(batch_size, max(1, _LOGITS // (2 * longest * vocabulary)))
