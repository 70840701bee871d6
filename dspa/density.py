"""Activation densities of preference triples: how often each latent fires on the prompt and on the answers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dspa.map.sparse import SparseRows
from dspa.saes.sae import ResidualSAE, norm_multiple, sae_sizes
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.refs import SAERef
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.intervention import Condition
from harness.model.residuals import Seen, TripleIds, batches_by_length, encode_triples, residual_flops, triple_residuals

CALIBRATION = 64  # triples from which the median norm is taken


@dataclass(frozen=True, eq=False)
class Densities:
    """``prompt[k, i]``: share of prompt tokens of triple k on which input latent i fires (rho); ``difference[k, j]``:
    share of chosen minus share of rejected tokens on which output latent j fires (Delta). Section "Offline" of
    arXiv 2603.21461; magnitudes are not used."""

    prompt: SparseRows
    difference: SparseRows
    norm_limits: tuple[float | None, float | None]
    """Largest norm of a token that the input and the output SAE count; None for SAEs trained on all tokens."""


def density_of(
    sae: ResidualSAE,
    residual: Float[Tensor, "row pos d_model"],
    counted: Bool[Tensor, "row pos"],
    norm_limit: float | None,
    *,
    meter: Meter | None = None,
) -> Float[Tensor, "row d_sae"]:
    """Share of the counted tokens of each row on which each latent is active; 0 for a row without counted tokens.

    Tokens whose norm exceeds ``norm_limit`` do not count. Only counted tokens are encoded, in blocks; with a ``meter``
    that is a step of its own, since its FLOPs depend on how many there are.
    """
    if norm_limit is not None:
        counted = counted & sae.fits_norm(residual, norm_limit)
    tokens, row = residual[counted], counted.nonzero()[:, 0]
    signature = ("encode", sae.layer, sae.d_sae, len(tokens), len(residual))
    with nullcontext() if meter is None else meter.step(signature, tokens=0, kind="forward"):
        counts = sae.encoder.counts(tokens, row, len(residual))
    return counts / counted.sum(1).clamp(min=1)[:, None]


@torch.no_grad()
def measure_densities(
    base: AlignedModel,
    triples: Sequence[Triple],
    *,
    input_sae: ResidualSAE | None,
    output_sae: ResidualSAE,
    meter: Meter,
    batch_size: int,
    condition: Condition = "conversation",
) -> Densities:
    """Densities of every triple, in order; beside them, memory does not grow with the number of triples.

    The prompt is passed once and its KV cache serves both answers; every forward stops after the deepest SAE layer,
    so later layers and the LM head never run. BOS, EOS and pad tokens are not counted, nor is the answer's EOS.
    Without ``input_sae`` the prompt densities have width 0 (unconditional methods need none). With ``condition``
    "last_turn" only the tokens of a prompt's last user turn count (`ChatFormat.last_turn`): the whole prompt is passed,
    but no other token of it is encoded.

    For SAEs that were trained without tokens of large norm (``norm_multiple``) the first 64 triples are passed first,
    and their residual streams held until the limit is known: that multiple of the median norm over all their tokens but
    special ones, whatever the condition. Raises ValueError, before any forward, for a triple that does not fit the
    context, and for a chat format that does not show where the last turn is.
    """
    encoded = encode_triples(base, triples)
    turns = condition_spans(base, encoded, condition)
    reads, writes = {input_sae.layer} if input_sae else set(), {output_sae.layer}
    saes = input_sae, output_sae
    filtered = _filtered(saes)
    cut = CALIBRATION if filtered else 0

    def passed(begin: int, end: int, also: set[int]) -> Iterator[tuple[list[int], Seen, Seen]]:
        for batch in meter.shared(batches_by_length(encoded[begin:end], batch_size)):
            rows = [begin + row for row in batch]
            yield rows, *triple_residuals(base, [encoded[r] for r in rows], reads | also, writes | also, meter)

    def held() -> Iterator[tuple[list[int], Seen, Seen]]:
        with meter.divided(steps=True):  # as `Meter.shared` does: what is encoded of them is on the bill of all
            while kept:
                yield kept.pop(0)

    kept = list(passed(0, cut, filtered))
    first, second = _limits(saes, (seen for _, *both in kept for seen in both), meter)
    limits = first, second
    found: list[tuple[list[int], SparseRows, SparseRows]] = []
    for rows, prompt, answers in chain(held(), passed(cut, len(encoded), set())):
        prompts = SparseRows.from_dense(torch.zeros(len(rows), 0))
        if input_sae is not None:
            counted = prompt.counted & _inside([turns[r] for r in rows], [encoded[r] for r in rows], prompt.counted)
            density = density_of(input_sae, prompt.residual[input_sae.layer], counted, limits[0], meter=meter)
            prompts = SparseRows.from_dense(density).to("cpu")
        residual = answers.residual[output_sae.layer]
        shares = density_of(output_sae, residual, answers.counted, limits[1], meter=meter)
        found.append((rows, prompts, SparseRows.from_dense(shares[0::2] - shares[1::2]).to("cpu")))
    parts = meter.ranks.collect(found)
    back = torch.tensor([row for rows, _, _ in parts for row in rows], dtype=torch.long).argsort()
    prompt_rows = SparseRows.concatenate([part for _, part, _ in parts], 0 if input_sae is None else input_sae.d_sae)
    differences = SparseRows.concatenate([part for _, _, part in parts], output_sae.d_sae)
    return Densities(prompt_rows.select(back), differences.select(back), limits)


def condition_spans(base: AlignedModel, encoded: Sequence[TripleIds], condition: Condition) -> list[tuple[int, int]]:
    """(start, end) of the prompt tokens that count, of each triple."""
    whole = condition == "conversation"
    return [(0, len(one.prompt)) if whole else base.chat.last_turn(one.prompt) for one in encoded]


def _inside(
    spans: Sequence[tuple[int, int]], batch: Sequence[TripleIds], like: Bool[Tensor, "row pos"]
) -> Bool[Tensor, "row pos"]:
    """Where each row's span is in a batch of prompts, which are padded on the left."""
    inside = torch.zeros_like(like)
    for row, ((start, end), one) in enumerate(zip(spans, batch, strict=True)):
        first = like.shape[1] - len(one.prompt)
        inside[row, first + start : first + end] = True
    return inside


def norm_limits(
    base: AlignedModel,
    encoded: Sequence[TripleIds],
    saes: Sequence[ResidualSAE | None],
    *,
    meter: Meter,
    batch_size: int,
) -> list[float | None]:
    """The largest norm of a token that each SAE counts: its multiple of the median of the first `CALIBRATION` triples.

    None for an SAE that was trained on all tokens; where all are, nothing is passed.
    """
    filtered, encoded = _filtered(saes), encoded[:CALIBRATION]
    batches = meter.shared(batches_by_length(encoded, batch_size)) if filtered else ()
    passes = (triple_residuals(base, [encoded[r] for r in rows], filtered, filtered, meter) for rows in batches)
    return _limits(saes, chain.from_iterable(passes), meter)


def _limits(saes: Sequence[ResidualSAE | None], passed: Iterable[Seen], meter: Meter) -> list[float | None]:
    """`norm_limits`, from the residual streams of this process's part of the first triples."""
    norms: dict[int, list[Tensor]] = {layer: [] for layer in _filtered(saes)}
    for seen in passed:
        for layer, found in norms.items():
            found.append(torch.linalg.vector_norm(seen.residual[layer][seen.counted].float(), dim=-1).cpu())
    medians = {layer: float(torch.cat(meter.ranks.collect(parts)).median()) for layer, parts in norms.items()}
    return [sae.norm_multiple * medians[sae.layer] if sae and sae.norm_multiple else None for sae in saes]


def _filtered(saes: Sequence[ResidualSAE | None]) -> set[int]:
    """Layers of the SAEs that were trained without tokens of large norm."""
    return {sae.layer for sae in saes if sae and sae.norm_multiple is not None}


def norm_limits_flops(encoded: Sequence[TripleIds], saes: Sequence[SAERef], *, rates: Rates, batch_size: int) -> int:
    """FLOPs of `norm_limits`."""
    filtered = [sae_sizes(ref)[0] for ref in saes if norm_multiple(ref) is not None]
    if not filtered:
        return 0
    return residual_flops(encoded[:CALIBRATION], last_layer=max(filtered), rates=rates, batch_size=batch_size)


def predict_densities(
    base: AlignedModel,
    triples: Sequence[Triple],
    *,
    input_sae: SAERef | None,
    output_sae: SAERef,
    rates: Rates,
    batch_size: int,
    condition: Condition = "conversation",
) -> int:
    """FLOPs that `measure_densities` is going to execute, if no token is left out for its norm."""
    encoded = encode_triples(base, triples)
    special = set(base.chat.special_ids)
    passes = [(output_sae, [text for one in encoded for text in (one.chosen, one.rejected)])]
    if input_sae is not None:
        spans = condition_spans(base, encoded, condition)
        passes.append((input_sae, [one.prompt[a:b] for one, (a, b) in zip(encoded, spans, strict=True)]))
    layers, total = [], 0
    for ref, texts in passes:
        layer, d_model, d_sae = sae_sizes(ref)
        layers.append(layer)
        total += 2 * d_model * d_sae * sum(token not in special for text in texts for token in text)
    cut = CALIBRATION if any(norm_multiple(ref) is not None for ref, _ in passes) else 0
    for part in (encoded[:cut], encoded[cut:]):
        total += residual_flops(part, last_layer=max(layers), rates=rates, batch_size=batch_size)
    return total
