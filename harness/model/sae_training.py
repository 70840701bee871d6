"""SAELens' own trainer, set up in one way for whoever trains SAEs here, and a trained SAE in the form it is used in."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAEMetadata, TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

WITH_K = ("batchtopk", "topk")
"""Kinds whose number of active latents is a setting: a mean over the batch, and that of every token."""


def new_sae(kind: str, *, d_in: int, d_sae: int, metadata: Mapping[str, Any], **options: Any) -> TrainingSAE[Any]:
    """An untrained SAE of SAELens' training class ``kind``; its weights are drawn by torch's global generator.

    Its input is scaled to norm sqrt(d_in), so that one learning rate fits all layers. ``options``: further fields of
    the kind's configuration, such as ``k``.
    """
    training_class, config_class = get_sae_training_class(kind)
    scaled: dict[str, Any] = {"normalize_activations": "expected_average_only_in", "metadata": SAEMetadata(**metadata)}
    return training_class(config_class(d_in=d_in, d_sae=d_sae, **scaled, **options))


def new_trainer(
    sae: TrainingSAE[Any], batches: Iterator[Tensor], *, steps: int, batch_size: int, lr: float, **options: Any
) -> SAETrainer[Any, Any]:
    """SAELens' trainer (Adam, constant rate) over ``batches`` of tokens, each [batch_size d_in].

    ``options``: further fields of `SAETrainerConfig`, such as the steps of warm-up and decay.
    """
    config = SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=lr,
        lr_end=lr / 10,
        device=str(sae.W_dec.device),
        logger=LoggingConfig(log_to_wandb=False),
        **options,
    )
    return SAETrainer(config, sae, batches)


def rise_and_fall(steps: int) -> dict[str, int]:
    """Options of `new_trainer`: a short warm-up, and in the last fifth a linear decay to a tenth."""
    warm_up = steps // 20
    return {"lr_warm_up_steps": warm_up if warm_up > 1 else 0, "lr_decay_steps": steps // 5}


def save_folded(sae: TrainingSAE[Any], folder: Path) -> None:
    """Write a trained SAE in SAELens' inference format, decoder rows of norm 1; ``sae`` itself is folded too.

    BatchTopK SAEs become JumpReLU ones by their threshold.
    """
    sae.fold_W_dec_norm()
    sae.save_inference_model(folder)
