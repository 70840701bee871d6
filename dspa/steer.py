"""DSPA at inference: per-prompt latent sets from the map, edits of active latents while decoding."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dspa.condiff import TruncatedMap
from dspa.density import activity
from dspa.diagnostics import SelectionLog
from dspa.edit import Mode, Scale, latent_change
from dspa.sae import ResidualSAE, load_sae
from dspa.select import ablate_set, augment_set, top_prompt_latents
from harness.intervention import Positions, RowState, register_intervention
from harness.refs import SAERef


@register_intervention("dspa")
class DSPASteering:
    """The online half of DSPA; a harness Intervention.

    ``settings``: input_sae, output_sae (as SAERef dumps), k_prompt, k_diff, alpha, mode, scale, positions.
    """

    def __init__(self, condition_map: TruncatedMap, settings: dict[str, Any], device: str = "cpu") -> None:
        self._map = condition_map.to(device)
        self._settings = settings
        self._input: ResidualSAE = load_sae(SAERef.model_validate(settings["input_sae"]), device)
        self._output: ResidualSAE = load_sae(SAERef.model_validate(settings["output_sae"]), device)
        self._k_prompt, self._k_diff = int(settings["k_prompt"]), int(settings["k_diff"])
        self._alpha = float(settings["alpha"])
        self._mode: Mode = settings["mode"]
        self._scale: Scale = settings["scale"]
        self._positions: Positions = settings["positions"]
        self._log = SelectionLog(self._map.mean_difference)

    @property
    def positions(self) -> Positions:
        return self._positions

    @property
    def read_layers(self) -> tuple[int, ...]:
        return (self._input.layer,)

    @property
    def write_layers(self) -> tuple[int, ...]:
        return (self._output.layer,)

    def condition(
        self, residual: Mapping[int, Float[Tensor, "batch pos d_model"]], prompt: Bool[Tensor, "batch pos"]
    ) -> RowState:
        """Selected latents (-1: none), their signs and decoder rows, for each prompt."""
        density = activity(self._input.encode(residual[self._input.layer]), prompt)
        scores = self._map.scores(top_prompt_latents(density, self._k_prompt))
        sets, signs = [], []
        if self._mode in ("ablate", "both"):
            sets.append(ablate_set(scores, self._k_diff))
            signs.append(-1.0)
        if self._mode in ("augment", "both"):
            sets.append(augment_set(scores, self._k_diff))
            signs.append(1.0)
        latents = torch.cat(sets, dim=1)
        sign = torch.cat([(s >= 0) * v for s, v in zip(sets, signs, strict=True)], dim=1)
        self._log.selected(latents, scores)
        kept = latents.clamp(min=0)
        return {"latents": kept, "sign": sign, "decoder": self._output.decoder_rows(kept)}

    def delta(
        self, layer: int, residual: Float[Tensor, "row d_model"], state: RowState
    ) -> Float[Tensor, "row d_model"]:
        """W~_dec (f~' - f~): zero, to the bit, for tokens on which no selected latent is active."""
        encoded = self._output.encode(residual)
        change = latent_change(
            encoded.gather(1, state["latents"]),
            state["sign"],
            encoded.amax(1),
            alpha=self._alpha,
            scale=self._scale,
        )
        self._log.edited(change)
        return self._output.decode_change(change, state["decoder"])

    def tensors(self) -> dict[str, Tensor]:
        return self._map.tensors()

    def params(self) -> dict[str, Any]:
        return self._settings

    def identity(self) -> dict[str, Any]:
        return self._settings | {"input_sae": self._input.identity, "output_sae": self._output.identity}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], params: dict[str, Any], device: str) -> "DSPASteering":
        return cls(TruncatedMap.restore(tensors), params, device)

    def diagnostics(self) -> dict[str, float]:
        return self._log.summary()
