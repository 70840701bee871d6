"""The arithmetic of a sparse autoencoder: full, blockwise and restricted to a few latents; no state, all fp32."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ARCHITECTURES = ("standard", "jumprelu", "gated", "topk")
_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
BLOCK_BYTES = 64 * 2**20  # no buffer of tokens x d_sae is larger than this


def token_blocks(x: Float[Tensor, "token d_model"], d_sae: int) -> tuple[Float[Tensor, "_ d_model"], ...]:
    """``x`` in consecutive blocks whose latents, d_sae a token in fp32, take no more than 64 MB."""
    return x.split(max(1, BLOCK_BYTES // (4 * d_sae)))


@dataclass(frozen=True, eq=False)
class Encoder:
    """One form for all architectures, with u = normalised(x) - centre:

        pre = u W_enc + bias        latent = max(gain * pre + offset, 0) where pre > cut, else 0

    Standard has cut 0, JumpReLU cut max(threshold, 0); in Gated SAEs ``pre`` is the gate and ``gain``, ``offset`` turn
    it into the magnitude, which shares W_enc. TopK keeps the ``k`` largest gain * pre of a token (then > 0).
    SAELens computes the same in another order: latents agree to about 1e-6 of the pre-activation's terms, and so does
    the restricted encode with the full one; only a latent that near its cut can come out on the other side.
    """

    weight: Float[Tensor, "d_model d_sae"]
    decoder: Float[Tensor, "d_sae d_model"]
    bias: Float[Tensor, " d_sae"]
    cut: Float[Tensor, " d_sae"]
    gain: Float[Tensor, " d_sae"] | None = None
    offset: Float[Tensor, " d_sae"] | None = None
    centre: Float[Tensor, " d_model"] | None = None
    normalise: str = "none"
    k: int | None = None

    @classmethod
    def of(cls, sae: Any) -> "Encoder":
        """What SAELens' object computes, for one that `check_supported` accepts."""
        config, state = sae.cfg, {name: tensor.detach().float() for name, tensor in sae.state_dict().items()}
        architecture = config.architecture()
        bias = state["b_gate" if architecture == "gated" else "b_enc"]
        form: dict[str, Any] = {"cut": torch.zeros_like(bias)}
        if architecture == "jumprelu":
            form["cut"] = state["threshold"].clamp(min=0)
        elif architecture == "gated":
            gain = state["r_mag"].exp()
            offset = state["b_mag"] - bias * gain
            form = {"cut": (-offset / gain).clamp(min=0), "gain": gain, "offset": offset}
        elif architecture == "topk":
            form |= {"k": config.k}
            form |= {"gain": state["W_dec"].norm(dim=-1)} if config.rescale_acts_by_decoder_norm else {}
        centre = state["b_dec"] if config.apply_b_dec_to_input else None
        normalise = config.normalize_activations
        return cls(state["W_enc"], state["W_dec"], bias, **form, centre=centre, normalise=normalise)

    def normalised(self, x: Float[Tensor, "*any d_model"]) -> tuple[Float[Tensor, "*any d_model"], Tensor]:
        """What is multiplied with W_enc, and the factor per token that undoes the normalisation ([1 1 1] for none)."""
        x, scale = x.float(), self._one
        if self.normalise == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            x = x / scale
        elif self.normalise == "layer_norm":
            x = x - x.mean(-1, keepdim=True)
            scale = x.norm(dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5  # std of what is centred already
            x = x / (scale + 1e-5)
        return (x if self.centre is None else x - self.centre), scale

    def encode(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_sae"]:
        """All latents."""
        pre = torch.addmm(self.bias, self.normalised(x.reshape(-1, x.shape[-1]))[0], self.weight)
        if self.k is None:
            latents = _activate(pre, self.cut, self.gain, self.offset)
        else:
            values, indices = self._top(pre)
            latents = pre.zero_().scatter_(-1, indices, values)
        return latents.view(*x.shape[:-1], latents.shape[-1])

    def counts(
        self, x: Float[Tensor, "token d_model"], row: Int[Tensor, " token"], n_rows: int
    ) -> Float[Tensor, "n_rows d_sae"]:
        """Number of tokens of each row on which each latent is active; ``row`` is in 0..n_rows-1.

        Works in blocks of tokens: no buffer of tokens x d_sae exceeds 64 MB.
        """
        counts = self.bias.new_zeros(n_rows, len(self.bias))
        for block, pre in self._blocks(x):
            if self.k is None:
                counts.index_add_(0, row[block], pre.gt_(self.cut))
            else:
                values, indices = self._top(pre)
                counts.index_put_((row[block, None], indices), values.gt_(0), accumulate=True)
        return counts

    def strongest(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
        """M = max_j f_j, the largest latent of each token, 0 where none is active; blockwise."""
        largest = self.bias.new_empty(len(x))
        for block, pre in self._blocks(x):
            if self.k is None:
                pre = _activate(pre, self.cut, self.gain, self.offset)
            elif self.gain is not None:
                pre = pre.mul_(self.gain)
            largest[block] = pre.amax(-1).clamp_(min=0)
        return largest

    def gather(self, latents: Int[Tensor, "batch k"]) -> dict[str, Tensor]:
        """What `encode_selected` and `decode_change` need of each row's latents, batch first: once per request."""
        rows = {"latents": latents, "decoder": self.decoder[latents]}
        if self.k is not None:
            if self.gain is not None:
                rows["decoder"] = rows["decoder"] / self.gain[latents][..., None]
            return rows
        columns = self.weight.index_select(1, latents.reshape(-1))  # faster than indexing the transposed matrix
        # Contiguous, or each decode step takes up to six times as long.
        rows["encoder"] = columns.T.contiguous().view(*latents.shape, -1)
        for name in ("bias", "cut", "gain", "offset"):
            values = getattr(self, name)
            if values is not None:
                rows[name] = values[latents][:, None]
        return rows

    def encode_selected(
        self, x: Float[Tensor, "batch pos d_model"], rows: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch pos k"], Tensor]:
        """Latents of the gathered sets, and the factor that undoes the normalisation ([batch pos 1] or [1 1 1])."""
        if self.k is not None:
            return self._selected_of_full(x, rows["latents"])
        x, scale = self.normalised(x)
        pre = torch.baddbmm(rows["bias"], x, rows["encoder"].mT)
        latents = _activate(pre, rows["cut"], rows.get("gain"), rows.get("offset"))
        return latents, scale

    def decode_change(
        self, change: Float[Tensor, "batch pos k"], rows: dict[str, Tensor], scale: Tensor
    ) -> Float[Tensor, "batch pos d_model"]:
        """What a change of the gathered latents adds to the reconstruction; bias and error term are untouched."""
        out = torch.bmm(change, rows["decoder"])
        return out if self.normalise == "none" else out * scale

    def _selected_of_full(self, x: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        batch, pos, width = x.shape
        wanted = latents.repeat_interleave(pos, 0)
        picked = x.new_empty(wanted.shape, dtype=torch.float32)
        for block, pre in self._blocks(x.reshape(-1, width)):
            values, indices = self._top(pre)
            picked[block] = pre.zero_().scatter_(-1, indices, values).gather(-1, wanted[block])
        return picked.view(batch, pos, -1), self.normalised(x)[1]

    @cached_property
    def _one(self) -> Tensor:
        return self.bias.new_ones(1, 1, 1)

    def _blocks(self, x: Float[Tensor, "token d_model"]) -> Iterator[tuple[slice, Tensor]]:
        """Pre-activations of consecutive blocks of tokens, all in one buffer: use it up before the next block."""
        size = max(1, BLOCK_BYTES // (4 * len(self.bias)))
        buffer = self.bias.new_empty(min(size, len(x)), len(self.bias))
        for start in range(0, len(x), size):
            block = slice(start, min(start + size, len(x)))
            inputs = self.normalised(x[block].detach())[0]
            yield block, torch.addmm(self.bias, inputs, self.weight, out=buffer[: len(inputs)])

    def _top(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        assert self.k is not None
        values, indices = torch.topk(pre if self.gain is None else pre.mul_(self.gain), self.k, dim=-1, sorted=False)
        return values.relu_(), indices


def check_supported(name: str, config: Mapping[str, Any]) -> None:
    """ValueError, with what is supported, for an SAE (SAELens' configuration as a dict) that has no exact form here."""
    architecture, normalisation = config["architecture"], config.get("normalize_activations", "none")
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ValueError(
            f"{name}: architecture {architecture!r} is not supported; supported are {known} (BatchTopK and Matryoshka "
            "BatchTopK: save them with SAELens' save_inference_model, which makes them jumprelu)"
        )
    if normalisation not in _NORMALISATIONS:
        raise ValueError(
            f"{name}: input normalisation {normalisation!r} is not supported; supported are "
            f"{', '.join(_NORMALISATIONS)}: fold a fixed scale or whitening into the weights (SAELens' "
            "fold_activation_norm_scaling_factor or fold_activation_whitening) and save the SAE again"
        )
    if config.get("reshape_activations", "none") != "none":
        reshaped = config["reshape_activations"]
        raise ValueError(f"{name}: it reshapes its input ({reshaped!r}), which is no residual stream")


def _activate(pre: Tensor, cut: Tensor, gain: Tensor | None, offset: Tensor | None) -> Tensor:
    active = pre > cut
    if gain is not None:
        pre = pre.mul_(gain)
        if offset is not None:
            pre = pre.add_(offset).clamp_(min=0)
    return pre.mul_(active)
