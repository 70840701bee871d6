"""The two sparse autoencoders: SAELens BatchTopK on the residual stream after an early and a late block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from harness.model.decoder import captured, find_decoder
from tasks.sandbox.corpus import Document
from tasks.sandbox.model import batches, encode_document

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Site:
    """Where an SAE reads, and how many latents fire on a token."""

    layer: int
    k: float


SITES = {"sae_early": Site(layer=0, k=8.0), "sae_late": Site(layer=2, k=24.0)}
BATCH_SIZE = 1024
LEARNING_RATE = 1e-3


@torch.no_grad()
def activations(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", documents: Sequence[Document], layer: int
) -> Float[Tensor, "pos d_model"]:
    """Residual stream after block ``layer`` at every token but the special ones (norm outliers)."""
    special = torch.tensor(tokenizer.all_special_ids)
    parts: list[Tensor] = []
    decoder = find_decoder(model)
    for ids, mask, _ in batches([encode_document(tokenizer, d) for d in documents], 64, None):
        # For the last block, transformers' hidden_states hold what comes after the final norm.
        with captured(decoder, {layer}, stop=True) as residual:
            decoder.stack(input_ids=ids, attention_mask=mask, use_cache=False)
        parts.append(residual[layer][~torch.isin(ids, special)])
    return torch.cat(parts)


def train_sae(
    data: Float[Tensor, "pos d_model"], site: Site, folder: Path, *, seed: int, d_sae: int, steps: int
) -> None:
    """Train a BatchTopK SAE with SAELens' trainer; write it in SAELens' inference format (as JumpReLU)."""
    from harness.model.sae_training import new_sae, new_trainer, save_folded

    torch.manual_seed(seed)
    metadata = {"model_name": "dspa-bench sandbox", "hook_name": f"blocks.{site.layer}.hook_resid_post"}
    sae = new_sae("batchtopk", d_in=data.shape[1], d_sae=d_sae, k=site.k, metadata=metadata)
    trainer = new_trainer(
        sae, _shuffled(data, seed), steps=steps, batch_size=BATCH_SIZE, lr=LEARNING_RATE,
        lr_decay_steps=steps // 4, dead_feature_window=200, n_batches_for_norm_estimate=20,
    )  # fmt: skip
    trainer.fit()
    save_folded(sae, folder)


def _shuffled(data: Float[Tensor, "pos d_model"], seed: int) -> Iterator[Float[Tensor, "batch d_model"]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator)
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            yield data[order[start : start + BATCH_SIZE]]


@torch.no_grad()
def sae_figures(folder: Path, data: Float[Tensor, "pos d_model"]) -> dict[str, float]:
    """L0 (mean active latents a token), explained variance and the share of latents that never fire."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    latents = sae.encode(data)
    error = (sae.decode(latents) - data).pow(2).sum()
    variance = (data - data.mean(0)).pow(2).sum()
    active = latents > 0
    return {
        "l0": float(active.sum(1).float().mean()),
        "explained_variance": float(1 - error / variance),
        "dead": float((~active.any(0)).float().mean()),
    }
