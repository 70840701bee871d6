"""What DSPA is measured against: editing and fitting as people write them first, and the least there is to compute."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from dspa.saes.sae import ResidualSAE
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows
from harness.model.decoder import captured, find_decoder, residual_of, with_residual
from harness.model.residuals import TripleIds, batches_by_length, early_residuals, encode_triples

LayerHook = Callable[[nn.Module, tuple, Any], Any]


def full_encode_hook(sae: Any, latents: Int[Tensor, "batch k"], *, alpha: float) -> LayerHook:
    """Forward hook: encode, lower each row's ``latents`` (-1: none) by alpha * M, add the difference of two decodes.

    Edits the last position of every forward: a left-padded prompt's last token, then each generated one.
    """
    steps = _steps(latents, alpha, int(sae.cfg.d_sae))

    def edited(last: Tensor) -> Tensor:
        features = sae.encode(last.float())
        delta = sae.decode(_ablated(features, steps)) - sae.decode(features)
        return last + delta.to(last.dtype)

    return _on_last_position(edited)


def error_term_hook(sae: Any, latents: Int[Tensor, "batch k"], *, alpha: float) -> LayerHook:
    """The same through SAELens' own forward with its error term; the edit is a hook on the latents inside ``sae``,
    which is changed by this."""
    steps = _steps(latents, alpha, int(sae.cfg.d_sae))
    with warnings.catch_warnings():  # SAELens prefers its own model class for this, which runs the same arithmetic
        warnings.filterwarnings("ignore", message="Setting use_error_term directly", category=DeprecationWarning)
        sae.use_error_term = True
    sae.hook_sae_acts_post.add_hook(lambda features, hook: _ablated(features, steps))
    return _on_last_position(lambda last: sae(last).to(last.dtype))


def _on_last_position(edited: Callable[[Tensor], Tensor]) -> LayerHook:
    def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
        residual = residual_of(output).clone()
        residual[:, -1] = edited(residual[:, -1])
        return with_residual(output, residual)

    return hook


def _steps(latents: Int[Tensor, "batch k"], alpha: float, d_sae: int) -> Float[Tensor, "batch d_sae"]:
    """alpha at the selected latents of each row, else 0: made once per request."""
    wide = torch.zeros(len(latents), d_sae + 1, device=latents.device)  # the last column takes the -1
    return wide.scatter_(1, latents.masked_fill(latents < 0, d_sae), alpha)[:, :d_sae].contiguous()


def _ablated(
    features: Float[Tensor, "batch d_sae"], steps: Float[Tensor, "batch d_sae"]
) -> Float[Tensor, "batch d_sae"]:
    return (features - steps * features.amax(-1, keepdim=True)).clamp(min=0)


Pairs = Sequence[Sequence[TripleIds]]
"""Triples in batches of similar length."""


def text_pairs(base: AlignedModel, triples: Sequence[Triple], batch_size: int) -> Pairs:
    encoded = encode_triples(base, triples)
    return [[encoded[i] for i in rows] for rows in batches_by_length(encoded, batch_size)]


@torch.no_grad()
def two_full_forwards(base: AlignedModel, pairs: Pairs, saes: Sequence[ResidualSAE]) -> None:
    """Each prompt with each answer through the whole model, LM head included; all their tokens encoded by SAELens with
    each of ``saes`` (none: plain forwards). Neither densities nor a map are made of it."""
    decoder = find_decoder(base.model)
    for batch in pairs:
        for texts in ([one.prompt + one.chosen for one in batch], [one.prompt + one.rejected for one in batch]):
            ids, mask = pad_rows(texts, base.chat.pad_id, side="right", device=base.device)
            with captured(decoder, [sae.layer for sae in saes]) if saes else nullcontext({}) as residual:
                base.model(input_ids=ids, attention_mask=mask, use_cache=False)
            for sae in saes:
                sae.sae.encode(residual[sae.layer][mask.bool()])


@torch.no_grad()
def least_forwards(base: AlignedModel, pairs: Pairs, saes: tuple[ResidualSAE, ResidualSAE]) -> None:
    """Each prompt once and both answers on its cache, no further than the output SAE's layer, and the bare product of
    prompt and answer tokens with one encoder matrix each: no activation function, no densities, no map."""
    decoder = find_decoder(base.model)
    input_sae, output_sae = saes
    for batch in pairs:
        cache = DynamicCache(config=base.model.config)
        ids, mask = pad_rows([one.prompt for one in batch], base.chat.pad_id, side="left", device=base.device)
        options = {"last": output_sae.layer, "cache": cache}
        prompt = early_residuals(decoder, {input_sae.layer}, ids, mask, **options)[input_sae.layer]
        torch.mm(prompt[mask.bool()].float(), input_sae.sae.W_enc)
        cache.batch_repeat_interleave(2)
        answers = [answer for one in batch for answer in (one.chosen, one.rejected)]
        answer_ids, answer_mask = pad_rows(answers, base.chat.pad_id, side="right", device=base.device)
        whole = torch.cat([mask.repeat_interleave(2, dim=0), answer_mask], dim=1)
        answered = early_residuals(decoder, {output_sae.layer}, answer_ids, whole, **options)[output_sae.layer]
        torch.mm(answered[answer_mask.bool()].float(), output_sae.sae.W_enc)
