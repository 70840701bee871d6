"""What fitting costs otherwise: two full forwards a pair, or the least that any implementation has to compute."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from dspa.sae import ResidualSAE
from harness.intervention import captured, find_decoder
from harness.model import AlignedModel
from harness.padding import pad_rows
from harness.preferences import Triple
from harness.residuals import early_residuals


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
    base, decoder = pairs.base, find_decoder(pairs.base.model)
    for texts in ([ids[0] + ids[side] for ids in batch] for batch in pairs.batches for side in (1, 2)):
        ids, mask = pad_rows(texts, base.chat.pad_id, side="right", device=base.device)
        with captured(decoder, [sae.layer for sae in saes]) as residual:
            base.model(input_ids=ids, attention_mask=mask, use_cache=False)
        for sae in saes:
            sae.sae.encode(residual[sae.layer][mask.bool()])


@torch.no_grad()
def least_forwards(pairs: TextPairs, saes: tuple[ResidualSAE, ResidualSAE]) -> None:
    """Each prompt once and both answers on its cache, no further than the output SAE's layer, and the bare product of
    prompt and answer tokens with one encoder matrix each: no activation function, no densities, no map."""
    base, decoder = pairs.base, find_decoder(pairs.base.model)
    input_sae, output_sae = saes
    for batch in pairs.batches:
        cache = DynamicCache(config=base.model.config)
        ids, mask = pad_rows([ids for ids, _, _ in batch], base.chat.pad_id, side="left", device=base.device)
        options = {"last": output_sae.layer, "cache": cache}
        prompt = early_residuals(decoder, {input_sae.layer}, ids, mask, **options)[input_sae.layer]
        torch.mm(prompt[mask.bool()].float(), input_sae.sae.W_enc)
        cache.batch_repeat_interleave(2)
        answers = [answer for _, *answers in batch for answer in answers]
        answer_ids, answer_mask = pad_rows(answers, base.chat.pad_id, side="right", device=base.device)
        whole = torch.cat([mask.repeat_interleave(2, dim=0), answer_mask], dim=1)
        answered = early_residuals(decoder, {output_sae.layer}, answer_ids, whole, **options)[output_sae.layer]
        torch.mm(answered[answer_mask.bool()].float(), output_sae.sae.W_enc)
