"""The same edit in the two ways people write it first: full encode and decode at every token."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.intervention import residual_of, with_residual

LayerHook = Callable[[nn.Module, tuple, Any], Any]


def full_encode_hook(sae: Any, latents: Int[Tensor, "batch k"], *, alpha: float) -> LayerHook:
    """Forward hook: encode, lower each row's ``latents`` (-1: none) by alpha * M, add the difference of two decodes.

    Edits the last position of every forward: a left-padded prompt's last token, then each generated one.
    """
    steps = _steps(latents, alpha, int(sae.cfg.d_sae))

    def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
        residual = residual_of(output).clone()
        last = residual[:, -1].float()
        features = sae.encode(last)
        delta = sae.decode(_ablated(features, steps)) - sae.decode(features)
        residual[:, -1] += delta.to(residual.dtype)
        return with_residual(output, residual)

    return hook


def error_term_hook(sae: Any, latents: Int[Tensor, "batch k"], *, alpha: float) -> LayerHook:
    """The same through SAELens' own forward with its error term; the edit is a hook on the latents inside ``sae``,
    which is changed by this."""
    steps = _steps(latents, alpha, int(sae.cfg.d_sae))
    with warnings.catch_warnings():  # SAELens prefers its own model class for this, which runs the same arithmetic
        warnings.filterwarnings("ignore", message="Setting use_error_term directly", category=DeprecationWarning)
        sae.use_error_term = True
    sae.hook_sae_acts_post.add_hook(lambda features, hook: _ablated(features, steps))

    def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
        residual = residual_of(output).clone()
        residual[:, -1] = sae(residual[:, -1]).to(residual.dtype)
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
