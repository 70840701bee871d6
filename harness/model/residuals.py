"""Residual streams of preference triples: the prompt is passed once, both answers on its KV cache, up to one layer."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows, positions_of
from harness.model.decoder import Decoder, captured, find_decoder


@dataclass(frozen=True)
class TripleIds:
    """Token ids of a triple, four bytes each; answers without the end-of-turn token."""

    prompt: array
    chosen: array
    rejected: array

    def __len__(self) -> int:
        """Tokens of the prompt with its longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Seen:
    """Residual stream after some layers, and which tokens count (no padding, no special ones)."""

    residual: Mapping[int, Float[Tensor, "row pos d_model"]]
    counted: Bool[Tensor, "row pos"]


def encode_triples(base: AlignedModel, triples: Sequence[Triple]) -> list[TripleIds]:
    """Ids of every triple, in order. Raises ValueError for one that does not fit the context."""
    return [TripleIds(*(array("i", ids) for ids in base.triple_ids(triple))) for triple in triples]


def batches_by_length(encoded: Sequence[TripleIds], batch_size: int) -> Iterator[list[int]]:
    """Indices of triples of similar length together, longest first, so that little is spent on padding."""
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def triple_residuals(
    base: AlignedModel, batch: Sequence[TripleIds], prompt_layers: set[int], answer_layers: set[int], meter: Meter
) -> tuple[Seen, Seen]:
    """(prompts, answers): residual streams after some layers; the answers' rows are chosen, rejected, chosen, ...

    Prompts are passed once and their KV cache serves both answers; layers after the last one asked for never run, nor
    does the LM head. Both passes are one step of ``meter``.
    """
    decoder = find_decoder(base.model)
    special = torch.tensor(base.chat.special_ids, device=base.device)
    answers = [list(answer) for one in batch for answer in (one.chosen, one.rejected)]
    ids, mask = pad_rows([list(one.prompt) for one in batch], base.chat.pad_id, side="left", device=base.device)
    answer_ids, answer_mask = pad_rows(answers, base.chat.pad_id, side="right", device=base.device)
    tokens = sum(len(one.prompt) + len(one.chosen) + len(one.rejected) for one in batch)
    last = max(prompt_layers | answer_layers)
    (rows, length), (both, width) = ids.shape, answer_ids.shape
    form = (rows * length, rows * length**2, both * width, both * width * (length + width))
    signature = ("forward", tuple(ids.shape), tuple(answer_ids.shape), last)
    with meter.step(signature, tokens=tokens, kind="forward", form=form):
        cache = DynamicCache(config=base.model.config)
        # The answers need the prompt's keys and values up to the last layer, so both passes end there.
        seen = early_residuals(decoder, prompt_layers, ids, mask, last=last, cache=cache)
        cache.batch_repeat_interleave(2)
        whole = torch.cat([mask.repeat_interleave(2, dim=0), answer_mask], dim=1)
        answered = early_residuals(decoder, answer_layers, answer_ids, whole, last=last, cache=cache)
    return (
        Seen(seen, mask.bool() & ~torch.isin(ids, special)),
        Seen(answered, answer_mask.bool() & ~torch.isin(answer_ids, special)),
    )


def early_residuals(
    decoder: Decoder,
    layers: set[int],
    ids: Int[Tensor, "row pos"],
    mask: Int[Tensor, "row all"],
    *,
    last: int | None = None,
    cache: DynamicCache | None = None,
) -> dict[int, Float[Tensor, "row pos d_model"]]:
    """Residual stream after ``layers`` for the tokens ``ids`` (the newest of ``mask``'s where there is a ``cache``).

    The pass stops after layer ``last``, or the deepest of ``layers``: what comes later never runs. The streams are on
    the device of ``ids``, wherever the layers are.
    """
    last = max(layers) if last is None else last
    positions = positions_of(mask)[:, -ids.shape[1] :]
    on_cache = {"past_key_values": cache, "use_cache": cache is not None}
    with captured(decoder, layers | {last}, stop=True) as residual:
        decoder.stack(input_ids=ids, attention_mask=mask, position_ids=positions, **on_cache)
    return {layer: residual[layer].to(ids.device) for layer in layers}


def residual_flops(encoded: Sequence[TripleIds], *, last_layer: int, rates: Rates, batch_size: int) -> int:
    """FLOPs of `triple_residuals` over all triples, for layers up to ``last_layer``."""
    body, total = rates.body(last_layer + 1), 0
    for rows in batches_by_length(encoded, batch_size):
        prompt = max(len(encoded[r].prompt) for r in rows)
        answer = max(max(len(encoded[r].chosen), len(encoded[r].rejected)) for r in rows)
        total += body.of(len(rows), prompt) + body.of(2 * len(rows), answer, past=prompt)
    return total
