"""A released SAE in the form that SAELens' trainer takes, and back, latent by latent; L0 held on the way.

Three things make this a continuation instead of a new training:
  units        Released SAEs come in all scales. Training happens in units in which residuals have norm about
               sqrt(d_model) and decoder rows norm about 1, so that one learning rate and one bandwidth fit all. All
               factors are powers of two: nothing is rounded, and no step gives the released weights bit for bit.
  sparsity     The coefficient of SAELens' sparsity penalty, which a released SAE does not tell, is steered after every
               step so that the mean L0 of the batches stays at the released one's. TopK needs none of that.
  calibration  Afterwards one common shift of the thresholds (JumpReLU) or of the encoder's or gate's bias (standard,
               gated) makes L0 on the calibration tokens what it was, to within one activation.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from dspa.saes.encoder import token_blocks
from dspa.saes.sae import ResidualSAE
from harness.model.sae_training import new_trainer, rise_and_fall

# Architectures that can go on. BatchTopK SAEs are released as jumprelu and go on as that: the thresholds that they are
# used with are trained on, where SAELens' batch-wise form would replace them by a new estimate.
_CONTINUED = ("standard", "jumprelu", "gated", "topk")
_PENALTIES = {"standard": "l1", "jumprelu": "l0", "gated": "l1"}  # SAELens' name of its sparsity coefficient
# What the calibration shifts, up or down for fewer latents.
_SHIFTED = {"standard": ("b_enc", -1), "jumprelu": ("threshold", +1), "gated": ("b_gate", -1)}
_SHIFTED |= {"batchtopk": ("topk_threshold", +1)}
_NORMALISING = ("layer_norm", "constant_norm_rescale")
_INTEGRAL, _PROPORTIONAL, _GENTLY = 0.05, 2.0, 0.01


def check_trainable(sae: ResidualSAE) -> None:
    """Raise ValueError, saying why, for an SAE that SAELens cannot train on as it is used."""
    architecture, normalise = sae.sae.cfg.architecture(), sae.sae.cfg.normalize_activations
    if architecture not in _CONTINUED:
        allowed = ", ".join(_CONTINUED)
        raise ValueError(f"SAEs of architecture {architecture!r} cannot be fine-tuned; allowed: {allowed}")
    if architecture == "gated" and normalise in _NORMALISING:
        raise ValueError(
            f"a gated SAE that normalises its input ({normalise}) cannot be fine-tuned: SAELens' auxiliary loss leaves "
            "the normalisation out; choose another SAE"
        )


@dataclass(frozen=True)
class Units:
    """Released weights x units = trained weights. ``data``: factor of the residual; ``inner``: of what the encoder
    sees (1 where the SAE normalises its input itself); ``norm``: of each decoder row, inverted. Powers of two."""

    data: float
    inner: float
    norm: Float[Tensor, " d_sae"]

    @classmethod
    def of(cls, sae: ResidualSAE, sample: Float[Tensor, "token d_model"]) -> "Units":
        data = _power_of_two(math.sqrt(sae.d_model) / sample.norm(dim=-1).mean())
        norm = sae.sae.W_dec.norm(dim=-1)
        if sae.sae.cfg.architecture() == "topk" and not sae.sae.cfg.rescale_acts_by_decoder_norm:
            norm = norm.mean().expand_as(norm)  # which k are largest must not change
        normalised = sae.sae.cfg.normalize_activations in _NORMALISING
        return cls(float(data), 1.0 if normalised else float(data), _power_of_two(norm))


def _power_of_two(value: Tensor) -> Tensor:
    return torch.where(value > 0, torch.exp2(value.clamp(min=1e-30).log2().round()), torch.ones_like(value))


def _rescale(state: Mapping[str, Tensor], inner: float, norm: Float[Tensor, " d_sae"]) -> dict[str, Tensor]:
    factors = {"W_enc": norm, "W_dec": 1 / norm[:, None], "b_dec": inner, "r_mag": 1.0}
    return {name: tensor.detach() * factors.get(name, inner * norm) for name, tensor in state.items()}


def to_training(sae: ResidualSAE, units: Units) -> TrainingSAE[Any]:
    """SAELens' training class of the same architecture with the same latents in the same places."""
    config = copy.deepcopy(sae.sae.cfg.to_dict())
    # SAELens would estimate and fold in a scale of its own for the other kinds; released SAEs have theirs folded in.
    if config["normalize_activations"] not in _NORMALISING:
        config["normalize_activations"] = "none"
    training_class, config_class = get_sae_training_class(config["architecture"])
    training = training_class(config_class.from_dict(config | {"decoder_init_norm": None}))
    state = _rescale(sae.sae.state_dict(), units.inner, units.norm)
    if "threshold" in state:
        state["threshold"] = state["threshold"].clamp(min=0)  # what a negative one does: see SAELens' JumpReLUSAE
    training.load_state_dict(state)
    return training


def to_released(training: TrainingSAE[Any], units: Units, original: ResidualSAE) -> ResidualSAE:
    """The trained weights in the original's configuration, units and conventions."""
    sae = SAE.from_dict(copy.deepcopy(original.sae.cfg.to_dict()))
    sae.load_state_dict(_rescale(training.state_dict(), 1 / units.inner, 1 / units.norm))
    sae.to(original.sae.W_dec.device).eval().requires_grad_(False)
    return ResidualSAE(sae, original.layer, original.norm_multiple)


def train(
    training: TrainingSAE[Any],
    batches: Iterator[Float[Tensor, "batch d_model"]],
    *,
    target_l0: float,
    steps: int,
    batch_size: int,
    lr: float,
) -> None:
    """``steps`` steps of SAELens' trainer (Adam, short warm-up, linear decay in the last fifth), in place.

    Latents that fall silent are not revived: that would give an index a new meaning.
    """
    trainer = new_trainer(
        training, batches, steps=steps, batch_size=batch_size, lr=lr, dead_feature_window=steps + 1,
        feature_sampling_window=steps + 1, **rise_and_fall(steps),
    )  # fmt: skip
    if training.cfg.architecture() in _PENALTIES:
        hold_l0(trainer, target_l0, next(batches))
    trainer.fit()
    training.eval()


def hold_l0(
    trainer: SAETrainer[Any, Any], target: float, batch: Float[Tensor, "batch d_model"], *, ramp: int = 0
) -> None:
    """Let the sparsity coefficient be what keeps the batches' mean L0 at ``target``; nothing for kinds without one.

    It starts where the penalty is as large as the error that is left on ``batch``, in the trainer's units. With
    ``ramp`` it starts at a hundredth of that, and the target comes down from the L0 of that batch in so many steps, by
    the same factor in each: fresh latents that are silenced at once learn nothing.
    """
    penalty = _PENALTIES.get(trainer.sae.cfg.architecture())
    if penalty is not None:
        trainer.coefficient_schedulers[penalty] = _HeldL0(trainer, target, batch, ramp)  # type: ignore[assignment]


class _HeldL0:
    """In place of SAELens' schedule of a sparsity coefficient: whatever keeps the batches' mean L0 at ``target``.

    A batch with more latents than wanted raises the coefficient (in proportion to the excess, and for good), one with
    fewer lowers it.
    """

    def __init__(
        self, trainer: SAETrainer[Any, Any], target: float, batch: Float[Tensor, "batch d_model"], ramp: int
    ) -> None:
        self._trainer, self._target, self._ramp = trainer, target, ramp
        self._steps, self._seen, self._sum = 0.0, 0.0, 0.0
        balance, self._first_l0 = _balance(trainer.sae, batch)
        self.value = self._start = balance * (_GENTLY if ramp else 1)

    @property
    def _wanted(self) -> float:
        left = 1 - self._steps / self._ramp if self._steps < self._ramp else 0.0
        return self._target * (max(self._first_l0, 1.0) / self._target) ** left

    def step(self) -> float:
        """Called by the trainer after each optimiser step."""
        fired = float(self._trainer.act_freq_scores.sum(dtype=torch.float64))
        l0 = (fired - self._seen) / self._trainer.cfg.train_batch_size_samples
        self._seen = fired
        self._steps += 1
        excess = max(-1.0, min(1.0, l0 / self._wanted - 1))
        self._sum += _INTEGRAL * excess
        self.value = self._start * math.exp(self._sum + _PROPORTIONAL * excess)
        return self.value

    def state_dict(self) -> dict[str, float]:
        """What SAELens' checkpoints hold of a schedule."""
        names = ("_steps", "_seen", "_sum", "_start", "_first_l0", "value")
        return {name: vars(self)[name] for name in names}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from there."""
        vars(self).update(state)


@torch.no_grad()
def _balance(training: TrainingSAE[Any], batch: Float[Tensor, "batch d_model"]) -> tuple[float, float]:
    """(coefficient at which the sparsity penalty equals the reconstruction error, L0) on a batch."""
    (name,) = training.get_coefficients()
    output = training.training_forward_pass(
        TrainStepInput(
            sae_in=batch, coefficients={name: 1.0}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
    )
    balance = float(output.losses["mse_loss"] / output.losses[f"{name}_loss"].clamp(min=1e-12))
    return balance, float((output.feature_acts > 0).sum()) / len(batch)


@torch.no_grad()
def calibrate(training: TrainingSAE[Any], sample: Float[Tensor, "token d_model"], active: int) -> None:
    """Shift all thresholds (or biases) by one amount so that ``active`` latents fire over all tokens of the sample.

    Where so many cannot fire at any shift (JumpReLU and gated latents need a positive activation), as many as can.
    """
    architecture = training.cfg.architecture()
    if architecture not in _SHIFTED:
        return
    largest = torch.empty(0, device=sample.device)
    for block in token_blocks(sample, training.cfg.d_sae):
        margins = torch.cat([largest, _margins(training, block).flatten()])
        largest = margins.topk(min(active + 1, len(margins))).values
    largest = largest[largest.isfinite()]
    if len(largest) < 2:
        return
    last = min(active, len(largest) - 1)
    name, sign = _SHIFTED[architecture]
    bias = getattr(training, name)
    bias += sign * (largest[max(last - 1, 0)] + largest[last]) / 2
    if sign > 0:  # a threshold
        bias.clamp_(min=0)


def _margins(training: TrainingSAE[Any], block: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
    """By how much each latent is above the point at which it falls silent; -inf where no shift can wake it."""
    _, hidden = training.encode_with_hidden_pre(block)
    architecture = training.cfg.architecture()
    if architecture == "standard":
        return hidden
    if architecture in ("jumprelu", "batchtopk"):
        return (hidden - getattr(training, _SHIFTED[architecture][0])).to(hidden.dtype).where(hidden > 0, -math.inf)
    gate = training.process_sae_in(block) @ training.W_enc + training.get_parameter("b_gate")
    return gate.where(hidden > 0, -math.inf)
