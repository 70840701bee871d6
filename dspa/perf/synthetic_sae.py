"""Random JumpReLU SAEs that fire as sparsely on a synthetic model as Gemma Scope's do on theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from harness.intervention import find_decoder
from harness.model import AlignedModel
from harness.padding import pad_rows
from harness.preferences import Triple
from harness.refs import SAERef
from harness.residuals import early_residuals

ACTIVE_SHARE = 70 / 16_384
"""Mean share of latents active on a token: Gemma Scope's canonical 16k SAEs of Gemma-2-2B have L0 of about 70."""
_SPREAD = 1.5  # of the logarithm of latents' frequencies: a few fire on every tenth token, most on one of a thousand


@dataclass(frozen=True)
class SyntheticSAEs:
    """SAEs at the model's (l_in, l_out). ``always`` is the output SAE with every latent firing on nearly every token:
    the worst case for lazy encoding."""

    input: SAERef
    output: SAERef
    always: SAERef
    d_sae: int
    size_ratio: float
    """Parameters of one SAE's encoder and decoder over those of the model."""


def make_saes(
    base: AlignedModel, layers: tuple[int, int], triples: Sequence[Triple], folder: Path, *, ratio: float, seed: int
) -> SyntheticSAEs:
    """SAEs with ``ratio`` times the model's parameters, calibrated on the tokens of ``triples``, in ``folder``."""
    d_model = int(base.model.config.hidden_size)
    n_model = sum(p.numel() for p in base.model.parameters())
    d_sae = max(round(ratio * n_model / (2 * d_model)), 64)
    residuals = _residuals(base, layers, triples)
    generator = torch.Generator(device=base.device).manual_seed(seed)
    refs = {}
    for name, layer in (("input", layers[0]), ("output", layers[1]), ("always", layers[1])):
        sae = _sae(base, layer, d_sae)
        directions = torch.randn(d_sae, d_model, generator=generator, device=base.device)
        sae.W_dec.data = directions / directions.norm(dim=1, keepdim=True)
        sae.W_enc.data = sae.W_dec.data.t().contiguous()
        pre = residuals[layer] @ sae.W_enc.data
        if name == "always":
            sae.b_enc.data = 0.1 - pre.amin(0)
        else:
            sae.b_enc.data = -pre.mean(0)
            sae.threshold.data = _thresholds(pre + sae.b_enc.data, generator)
        sae.save_model(folder / name)
        refs[name] = SAERef.model_validate({"path": str(folder / name)})
    return SyntheticSAEs(**refs, d_sae=d_sae, size_ratio=2 * d_sae * d_model / n_model)


def _sae(base: AlignedModel, layer: int, d_sae: int) -> SAE:
    config = {
        "architecture": "jumprelu",
        "d_in": int(base.model.config.hidden_size),
        "d_sae": d_sae,
        "dtype": "float32",
        "device": str(base.device),
        "apply_b_dec_to_input": False,
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"},
    }
    return SAE.from_dict(config)


def _thresholds(pre: Float[Tensor, "token d_sae"], generator: torch.Generator) -> Float[Tensor, " d_sae"]:
    """Log-normal frequencies with mean `ACTIVE_SHARE`, reached on these tokens."""
    spread = torch.randn(pre.shape[1], generator=generator, device=pre.device) * _SPREAD
    share = (ACTIVE_SHARE * (spread - _SPREAD**2 / 2).exp()).clamp(max=0.5)
    active = (share * len(pre)).round().long()
    ordered = pre.sort(dim=0, descending=True).values
    return ordered.gather(0, active[None])[0].clamp(min=0)


@torch.no_grad()
def _residuals(
    base: AlignedModel, layers: tuple[int, int], triples: Sequence[Triple]
) -> dict[int, Float[Tensor, "token d_model"]]:
    """Residual stream of prompts with their chosen answers, without special tokens."""
    decoder = find_decoder(base.model)
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for triple in triples:
        prompt, chosen, _ = base.triple_ids(triple)
        ids, mask = pad_rows([prompt + chosen], base.chat.pad_id, side="right", device=base.device)
        residual = early_residuals(decoder, set(layers), ids, mask)
        counted = ~torch.isin(ids, torch.tensor(base.chat.special_ids, device=base.device))
        for layer in layers:
            kept[layer].append(residual[layer][counted].float())
    return {layer: torch.cat(parts) for layer, parts in kept.items()}
