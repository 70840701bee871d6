"""Sparse autoencoders on the residual stream, loaded through SAELens from a folder or by release name."""

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from harness.fingerprint import hash_tensors
from harness.method import BaseShape
from harness.refs import SAERef

_HOOK_POINTS = (
    (re.compile(r"^blocks\.(\d+)\.hook_resid_post$"), 0),
    (re.compile(r"^blocks\.(\d+)\.hook_resid_pre$"), -1),  # what enters block l left block l-1
    (re.compile(r"^(?:model\.)?layers\.(\d+)$"), 0),
)


@dataclass(frozen=True, eq=False)
class ResidualSAE:
    """An SAE (fp32) on the output of decoder layer ``layer``; input normalisation and biases are SAELens' own."""

    sae: Any
    layer: int

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def d_model(self) -> int:
        return int(self.sae.cfg.d_in)

    @cached_property
    def identity(self) -> str:
        """Content hash: weights, configuration and layer, wherever the SAE was loaded from."""
        options = {k: v for k, v in self.sae.cfg.to_dict().items() if k not in ("device", "dtype", "metadata")}
        return f"{self.layer}-{json.dumps(options, sort_keys=True)}-{hash_tensors(self.sae.state_dict())}"

    def encode(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Latent activations, fp32."""
        return self.sae.encode(residual.float())

    def decode_change(
        self, change: Float[Tensor, "row k"], rows: Float[Tensor, "row k d_model"]
    ) -> Float[Tensor, "row d_model"]:
        """What a change of k latents (with decoder ``rows``) adds to the reconstruction of the tokens last encoded.

        Bias and error term are untouched: only the linear part of the decoder, undoing the input normalisation.
        """
        out = torch.bmm(change[:, None], rows)[:, 0]
        if self.sae.cfg.normalize_activations == "none":
            return out
        # Undoing the normalisation is affine per token; the difference to zero is its linear part. SAELens forgets a
        # token's scale once it is undone, so both go through in one call.
        restored = self.sae.run_time_activation_norm_fn_out(torch.stack([out, torch.zeros_like(out)]))
        return restored[0] - restored[1]

    def decoder_rows(self, latents: Int[Tensor, "*any k"]) -> Float[Tensor, "*any k d_model"]:
        """Decoder directions of the given latents."""
        return self.sae.W_dec[latents].detach()


def load_sae(ref: SAERef, device: str = "cpu") -> ResidualSAE:
    """Load through SAELens, in fp32 and frozen; each SAE is held once per process.

    Raises ValueError when the folder is missing or the hook point is not the residual stream.
    """
    return _load(ref.path, ref.release, ref.id, device)


@cache
def _load(path: str | None, release: str | None, sae_id: str | None, device: str) -> ResidualSAE:
    if path is not None:
        _config_of(path)
        sae = SAE.load_from_disk(path, device=device, dtype="float32")
    else:
        sae = SAE.from_pretrained(str(release), str(sae_id), device=device, dtype="float32")
    sae.eval().requires_grad_(False)
    return ResidualSAE(sae, _layer(path or f"{release}/{sae_id}", sae.cfg.metadata.hook_name))


def check_sae(ref: SAERef, base: BaseShape) -> tuple[int, int]:
    """(layer, d_sae) of an SAE that fits the base; raises ValueError saying what does not fit.

    A folder is judged by its cfg.json without loading weights; a release name is resolved by SAELens.
    """
    if ref.path is not None:
        config = _config_of(ref.path)
        metadata = config.get("metadata") or {}
        hook = metadata.get("hook_name", config.get("hook_name"))
        layer, d_in, d_sae = _layer(str(ref), hook), config["d_in"], config["d_sae"]
    else:
        loaded = load_sae(ref)
        layer, d_in, d_sae = loaded.layer, loaded.d_model, loaded.d_sae
    if d_in != base.d_model:
        raise ValueError(f"SAE {ref}: made for d_model {d_in}, but base {base.name} has d_model {base.d_model}")
    if not 0 <= layer < base.n_layers:
        raise ValueError(
            f"SAE {ref}: layer {layer} is outside base {base.name}, whose layers are 0..{base.n_layers - 1}"
        )
    return layer, int(d_sae)


def _config_of(path: str) -> dict[str, Any]:
    folder = Path(path)
    for name in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"SAE folder {path!r} has no {name}; give a folder written by SAELens' save_model")
    return json.loads((folder / "cfg.json").read_text(encoding="utf-8"))


def _layer(name: str, hook: str | None) -> int:
    for pattern, offset in _HOOK_POINTS:
        match = pattern.match(hook or "")
        if match:
            return int(match.group(1)) + offset
    raise ValueError(
        f"SAE {name}: hook point {hook!r} is not the residual stream; use one trained on blocks.<l>.hook_resid_post"
    )
