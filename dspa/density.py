"""Activation densities of preference triples: how often each latent fires on the prompt and on the answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from dspa.sae import ResidualSAE
from harness.compute import Meter
from harness.intervention import Decoder, find_decoder, residual_of
from harness.model import AlignedModel
from harness.padding import pad_rows, positions_of
from harness.preferences import Triple


@dataclass(frozen=True)
class Densities:
    """``prompt[k, i]``: share of prompt tokens of triple k on which input latent i fires (rho); ``difference[k, j]``:
    share of chosen minus share of rejected tokens on which output latent j fires (Delta). Section "Offline" of
    arXiv 2603.21461; magnitudes are not used."""

    prompt: Float[Tensor, "n d_in"]
    difference: Float[Tensor, "n d_out"]


def activity(latents: Float[Tensor, "row pos d_sae"], counted: Bool[Tensor, "row pos"]) -> Float[Tensor, "row d_sae"]:
    """Share of the counted tokens of each row on which each latent is active; 0 for a row without counted tokens."""
    active = (latents > 0).float() * counted[..., None]
    return active.sum(1) / counted.sum(1).clamp(min=1)[:, None]


@torch.no_grad()
def measure_densities(
    base: AlignedModel,
    triples: Sequence[Triple],
    *,
    input_sae: ResidualSAE | None,
    output_sae: ResidualSAE,
    meter: Meter,
    batch_size: int,
) -> Densities:
    """Densities of every triple, in order.

    The prompt is passed once and its KV cache serves both answers; every forward stops after the deepest SAE layer,
    so later layers and the LM head never run. BOS, EOS and pad tokens are not counted, nor is the answer's EOS.
    Without ``input_sae`` the prompt densities have width 0 (unconditional methods need none).
    """
    decoder = find_decoder(base.model)
    special = torch.tensor(base.chat.special_ids, device=base.device)
    prompt = torch.zeros(len(triples), input_sae.d_sae if input_sae else 0)
    layers = {output_sae.layer} | ({input_sae.layer} if input_sae else set())
    difference = torch.zeros(len(triples), output_sae.d_sae)
    encoded = [base.triple_ids(triple) for triple in triples]
    for rows in _batches(encoded, batch_size):
        prompts = [encoded[r][0] for r in rows]
        answers = [answer for r in rows for answer in encoded[r][1:]]
        ids, mask = pad_rows(prompts, base.chat.pad_id, side="left", device=base.device)
        answer_ids, answer_mask = pad_rows(answers, base.chat.pad_id, side="right", device=base.device)
        tokens = int(mask.sum() + answer_mask.sum())
        with meter.step(("densities", tuple(ids.shape), tuple(answer_ids.shape)), tokens=tokens, kind="forward"):
            cache = DynamicCache(config=base.model.config)
            # The answers need the prompt's keys and values up to the output layer, so both passes end there.
            seen = _residuals(decoder, layers, ids, mask, cache)
            if input_sae is not None:
                counted = mask.bool() & ~torch.isin(ids, special)
                prompt[rows] = activity(input_sae.encode(seen[input_sae.layer]), counted).cpu()
            cache.batch_repeat_interleave(2)
            whole = torch.cat([mask.repeat_interleave(2, dim=0), answer_mask], dim=1)
            seen = _residuals(decoder, {output_sae.layer}, answer_ids, whole, cache)
            counted = answer_mask.bool() & ~torch.isin(answer_ids, special)
            shares = activity(output_sae.encode(seen[output_sae.layer]), counted).cpu()
            difference[rows] = shares[0::2] - shares[1::2]
    return Densities(prompt, difference)


def _batches(encoded: Sequence[tuple[list[int], list[int], list[int]]], batch_size: int) -> Iterator[list[int]]:
    """Triples of similar length together, so that little is spent on padding."""
    lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in encoded]
    order = sorted(range(len(encoded)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class _Stop(Exception):
    """Ends a forward pass after the deepest layer that is needed."""


def _residuals(
    decoder: Decoder,
    layers: set[int],
    ids: Int[Tensor, "row pos"],
    mask: Int[Tensor, "row all"],
    cache: DynamicCache,
) -> dict[int, Float[Tensor, "row pos d_model"]]:
    """Residual stream after ``layers`` for new tokens ``ids`` on ``cache``; the pass stops after the last of them."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int):
        def hook(_module: nn.Module, _args: tuple, output: object) -> None:
            seen[layer] = residual_of(output)
            if layer == max(layers):
                raise _Stop

        return hook

    handles = [decoder.layers[layer].register_forward_hook(keep(layer)) for layer in layers]
    positions = positions_of(mask)[:, -ids.shape[1] :]
    try:
        decoder.stack(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
