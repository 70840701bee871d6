"""What fitting costs otherwise: two full forwards a pair, or the least that any implementation has to compute."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from transformers import DynamicCache

from dspa.sae import ResidualSAE
from harness.intervention import find_decoder, residual_of
from harness.model import AlignedModel
from harness.padding import pad_rows, positions_of
from harness.preferences import Triple


class TextPairs:
    """Triples as token ids, in batches of similar length."""

    def __init__(self, base: AlignedModel, triples: Sequence[Triple], batch_size: int) -> None:
        encoded = [base.triple_ids(triple) for triple in triples]
        encoded.sort(key=lambda ids: -len(ids[0]) - max(len(ids[1]), len(ids[2])))
        self.base = base
        self.batches = [encoded[start : start + batch_size] for start in range(0, len(encoded), batch_size)]


@torch.no_grad()
def two_full_forwards(pairs: TextPairs, saes: tuple[ResidualSAE, ResidualSAE]) -> None:
    """Each prompt with each answer through the whole model, LM head included; all their tokens encoded by SAELens at
    both layers. Neither densities nor a map are made of it."""
    base, layers, seen = pairs.base, find_decoder(pairs.base.model).layers, {}
    for texts in ([ids[0] + ids[side] for ids in batch] for batch in pairs.batches for side in (1, 2)):
        ids, mask = pad_rows(texts, base.chat.pad_id, side="right", device=base.device)
        handles = [
            layers[sae.layer].register_forward_hook(
                lambda _m, _a, output, layer=sae.layer: seen.update({layer: residual_of(output)})
            )
            for sae in saes
        ]
        try:
            base.model(input_ids=ids, attention_mask=mask, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for sae in saes:
            sae.sae.encode(seen[sae.layer][mask.bool()])


class _Stop(Exception):
    """Ends a forward after the last layer that is needed."""


@torch.no_grad()
def least_forwards(pairs: TextPairs, saes: tuple[ResidualSAE, ResidualSAE]) -> None:
    """Each prompt once and both answers on its cache, no further than the output SAE's layer, and the bare product of
    prompt and answer tokens with one encoder matrix each: no activation function, no densities, no map."""
    base, decoder = pairs.base, find_decoder(pairs.base.model)
    input_sae, output_sae = saes
    seen = {}

    def keep(_module: torch.nn.Module, _args: tuple, output: object) -> None:
        seen["input"] = residual_of(output)

    def stop(_module: torch.nn.Module, _args: tuple, output: object) -> None:
        seen["output"] = residual_of(output)
        raise _Stop

    def forward(ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> None:
        positions = positions_of(mask)[:, -ids.shape[1] :]
        with suppress(_Stop):
            decoder.stack(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )

    handles = [
        decoder.layers[input_sae.layer].register_forward_hook(keep),
        decoder.layers[output_sae.layer].register_forward_hook(stop),
    ]
    try:
        for batch in pairs.batches:
            cache = DynamicCache(config=base.model.config)
            ids, mask = pad_rows([ids for ids, _, _ in batch], base.chat.pad_id, side="left", device=base.device)
            forward(ids, mask, cache)
            torch.mm(seen["input"][mask.bool()].float(), input_sae.sae.W_enc)
            cache.batch_repeat_interleave(2)
            answers = [answer for _, *answers in batch for answer in answers]
            answer_ids, answer_mask = pad_rows(answers, base.chat.pad_id, side="right", device=base.device)
            forward(answer_ids, torch.cat([mask.repeat_interleave(2, dim=0), answer_mask], dim=1), cache)
            torch.mm(seen["output"][answer_mask.bool()].float(), output_sae.sae.W_enc)
    finally:
        for handle in handles:
            handle.remove()
