"""One new SAE from kept activations, by SAELens' trainer; from any step on as if never interrupted."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from dspa.saes.activations import Batches
from dspa.saes.sae import ResidualSAE, read_sae
from dspa.saes.training import calibrate, hold_l0
from harness.data.refs import SAERef
from harness.files import atomic_folder, write_json
from harness.model.sae_training import WITH_K, new_sae, new_trainer, rise_and_fall, save_folded

KINDS = ("batchtopk", "topk", "jumprelu", "standard", "gated")
"""SAELens' trainers that give an SAE of a kind that can be used here; batchtopk is saved as jumprelu."""
SAMPLE_TOKENS = 16_384
CHECKPOINT_EVERY = 100
_WATCH_EVERY = 10


@dataclass(frozen=True)
class NewSAE:
    """``latents`` of which ``k`` are active on a token (topk), or on the mean token. ``batch_size``: tokens a step."""

    kind: str
    latents: int
    k: int | float
    steps: int
    batch_size: int
    lr: float
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """Further fields of SAELens' configuration for this kind."""
        if self.kind in WITH_K:
            return {"k": int(self.k) if self.kind == "topk" else float(self.k)}
        # Only so do encoders learn to be sparse within some hundred steps: thresholds alone move too slowly.
        return {"jumprelu_ste_to_input": True} if self.kind == "jumprelu" else {}


@dataclass(frozen=True)
class Seen:
    """One batch after ``step`` steps: L0, explained variance, and latents that have been silent for the window in which
    SAELens calls a latent dead."""

    step: int
    l0: float
    explained_variance: float
    dead: int

    @classmethod
    @torch.no_grad()
    def of(cls, step: int, output: TrainStepOutput, trainer: SAETrainer[Any, Any]) -> "Seen":
        x = output.sae_in
        error = (output.sae_out - x).double().pow(2).sum()
        variance = (x - x.mean(0)).double().pow(2).sum()
        active = float((output.feature_acts > 0).sum())
        return cls(step, active / len(x), float(1 - error / variance), int(trainer.dead_neurons.sum()))


def start(settings: NewSAE, batches: Batches, layer: int, *, device: str) -> SAETrainer[Any, Any]:
    """A trainer before its first step: weights drawn by the seed, input scaled to norm sqrt(d_model), and the decoder's
    bias at the mean, which Adam would take thousands of steps to reach where a few dimensions are huge."""
    sample = sample_of(batches)
    d_model = sample.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        metadata = {"hook_name": f"blocks.{layer}.hook_resid_post"}
        sae = new_sae(settings.kind, d_in=d_model, d_sae=settings.latents, metadata=metadata, **settings.options)
    sae.to(device)
    trainer = new_trainer(
        sae, iter(()), steps=settings.steps, batch_size=settings.batch_size, lr=settings.lr,
        # Latents silent for so many steps take part in the auxiliary loss of the kinds that have one.
        dead_feature_window=max(10, min(200, settings.steps // 8)), feature_sampling_window=settings.steps + 1,
        **rise_and_fall(settings.steps),
    )  # fmt: skip
    scale = math.sqrt(d_model) / float(sample.norm(dim=-1).mean())
    trainer.activation_scaler.scaling_factor = scale
    with torch.no_grad():
        sae.b_dec.copy_(sample.mean(0) * scale)
    first = sample[: settings.batch_size].to(device) * scale
    hold_l0(trainer, float(settings.k), first, ramp=settings.steps // 2)
    return trainer


def sample_of(batches: Batches) -> Float[Tensor, "token d_model"]:
    """The tokens that scale, mean and final thresholds are set by: the first of the first epoch."""
    return batches.files.rows(batches.layer, batches.order(0)[:SAMPLE_TOKENS])


def train_new(
    settings: NewSAE,
    batches: Batches,
    folder: Path,
    *,
    device: str = "cpu",
    watch: Callable[[Seen], object] = lambda _: None,
) -> tuple[SAETrainer[Any, Any], list[Seen]]:
    """All steps; (the trainer after them, what every tenth batch looked like). ``watch`` is told of these as they come.

    A checkpoint in ``folder`` is gone on from, and the weights come out as without the interruption (bit for bit on a
    CPU with as many threads).
    """
    trainer = start(settings, batches, batches.layer, device=device)
    seen = _restore(trainer, folder / "checkpoint")
    todo: Iterator[Tensor] = batches.after(trainer.n_training_steps)
    while trainer.n_training_steps < settings.steps:
        output = trainer.step(next(todo))
        trainer.n_training_steps += 1
        done = trainer.n_training_steps
        if done % _WATCH_EVERY == 0 or done == settings.steps:
            seen.append(Seen.of(done, output, trainer))
            watch(seen[-1])
        if done % CHECKPOINT_EVERY == 0 or done == settings.steps:
            _keep(trainer, seen, folder / "checkpoint")
    return trainer, seen


def _keep(trainer: SAETrainer[Any, Any], seen: list[Seen], path: Path) -> None:
    with atomic_folder(path, replace=True) as folder:
        trainer.save_trainer_state(folder)
        torch.save(trainer.sae.state_dict(), folder / "weights.pt")
        write_json(folder / "seen.json", [asdict(one) for one in seen])


def _restore(trainer: SAETrainer[Any, Any], path: Path) -> list[Seen]:
    if not path.is_dir():
        return []
    trainer.load_trainer_state(path)
    weights = torch.load(path / "weights.pt", map_location=trainer.cfg.device, weights_only=True)
    trainer.sae.load_state_dict(weights)
    return [Seen(**one) for one in json.loads((path / "seen.json").read_text(encoding="utf-8"))]


@torch.no_grad()
def finish(trainer: SAETrainer[Any, Any], settings: NewSAE, sample: Float[Tensor, "token d_model"]) -> None:
    """L0 on ``sample`` made what was asked for, and the scale of the input folded into the weights; in place.

    All kinds but topk get their thresholds (or biases) shifted together. For BatchTopK this takes the place of SAELens'
    running mean of thresholds, which in short trainings is still on its way up from 0.
    """
    training: TrainingSAE[Any] = trainer.sae
    scale = trainer.activation_scaler.scaling_factor
    assert scale is not None
    calibrate(training, sample.to(training.W_dec.device) * scale, round(settings.k * len(sample)))
    training.fold_activation_norm_scaling_factor(scale)


def save_new(
    training: TrainingSAE[Any], folder: Path, scratch: Path, *, dtype: str, metadata: dict[str, Any]
) -> ResidualSAE:
    """Write the finished SAE into ``folder`` in SAELens' format with weights of ``dtype``; the SAE as read from there.

    ``metadata`` joins what SAELens records. ``scratch`` is a folder for its copy in fp32.
    """
    save_folded(training, scratch)
    sae = SAE.load_from_disk(scratch, dtype=dtype)
    for name, value in metadata.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return read_sae(SAERef.model_validate({"path": str(folder)}), str(training.W_dec.device))
