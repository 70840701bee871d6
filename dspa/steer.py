"""DSPA at inference: per-prompt latent sets from the map, edits of active latents while decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dspa.density import density_of
from dspa.diagnostics import SelectionTally, selection_figures
from dspa.edit import Mode, Scale, latent_change, movable_latents
from dspa.sae import ResidualSAE, load_sae
from dspa.select import ablate_set, augment_set, top_prompt_latents
from dspa.shipped import ShippedMap
from harness.intervention import Positions, RowState, register_intervention
from harness.refs import SAERef


@register_intervention("dspa")
class DSPASteering:
    """The online half of DSPA; a harness Intervention.

    ``settings``: input_sae, output_sae (as SAERef dumps), k_prompt, k_diff, alpha, mode, scale, positions, norm_limits
    (of input and output SAE, or None) and the map's own options.
    """

    def __init__(self, condition_map: ShippedMap, settings: dict[str, Any], device: str = "cpu") -> None:
        self._map = condition_map.to(device)
        self._settings = settings
        self._input: ResidualSAE = load_sae(SAERef.model_validate(settings["input_sae"]), device)
        self._output: ResidualSAE = load_sae(SAERef.model_validate(settings["output_sae"]), device)
        self._k_prompt, self._k_diff = int(settings["k_prompt"]), int(settings["k_diff"])
        self._alpha = float(settings["alpha"])
        self._mode: Mode = settings["mode"]
        self._scale: Scale = settings["scale"]
        self._positions: Positions = settings["positions"]
        self._input_limit, self._output_limit = settings["norm_limits"]
        # On an accelerator, looking which tokens need the full encode would make the host wait at every step.
        self._lazy = torch.device(device).type == "cpu"

    @property
    def positions(self) -> Positions:
        return self._positions

    @property
    def read_layers(self) -> tuple[int, ...]:
        return (self._input.layer,)

    @property
    def write_layers(self) -> tuple[int, ...]:
        return (self._output.layer,)

    @property
    def condition_map(self) -> ShippedMap:
        """The map the sets are selected by."""
        return self._map

    @property
    def saes(self) -> tuple[ResidualSAE, ResidualSAE]:
        """(input SAE, output SAE)."""
        return self._input, self._output

    def condition(
        self,
        residual: Mapping[int, Float[Tensor, "batch pos d_model"]],
        prompt: Bool[Tensor, "batch pos"],
        *,
        tally: SelectionTally | None = None,
    ) -> RowState:
        """Selected latents with their signs (0: none), encoder and decoder rows, for each prompt."""
        density = density_of(self._input, residual[self._input.layer], prompt, self._input_limit)
        selected = top_prompt_latents(density, self._k_prompt)
        scores = self._map.scores(selected, density)
        latents, sign = self.latent_sets(scores)
        if tally is not None:
            tally.selected(selected, latents, scores)
        index = latents.clamp(min=0)
        return {**self._output.gather(index), "sign": sign, "seen": torch.zeros_like(index[:, 0])}

    def latent_sets(
        self, scores: Float[Tensor, "batch d_sae"]
    ) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
        """The latents to be edited for the given scores (-1: none) and their signs: -1 ablate, +1 augment, 0 none."""
        sets, signs = [], []
        if self._mode in ("ablate", "both"):
            sets.append(ablate_set(scores, self._k_diff))
            signs.append(-1.0)
        if self._mode in ("augment", "both"):
            sets.append(augment_set(scores, self._k_diff))
            signs.append(1.0)
        latents = torch.cat(sets, dim=1)
        sign = torch.cat([(s >= 0) * v for s, v in zip(sets, signs, strict=True)], dim=1)
        return latents, sign

    def delta(
        self,
        layer: int,
        residual: Float[Tensor, "batch pos d_model"],
        state: RowState,
        steered: Bool[Tensor, "batch pos"],
        *,
        tally: SelectionTally | None = None,
    ) -> Float[Tensor, "batch pos d_model"] | None:
        """W~_dec (f~' - f~): zero, to the bit, for tokens on which no selected latent is active."""
        allowed = steered
        if self._output_limit is not None:
            allowed = steered & self._output.fits_norm(residual, self._output_limit)
        latents, scale = self._output.encode_selected(residual, state)
        movable = movable_latents(latents, state["sign"], allowed)
        strongest = self._strongest(residual, movable) if self._scale == "max" else None
        change = latent_change(latents, state["sign"], strongest, movable, alpha=self._alpha)
        if tally is not None:
            tally.edited(change != 0, state["latents"], steered, state["seen"])
        return self._output.decode_change(change, state, scale)

    def _strongest(
        self, residual: Float[Tensor, "batch pos d_model"], movable: Bool[Tensor, "batch pos k"]
    ) -> Float[Tensor, "batch pos"]:
        """M of each token with an active selected latent, from the full encode; other tokens do not need it."""
        needed = movable.any(-1)
        if not self._lazy or needed.all():
            return self._output.strongest(residual.flatten(0, 1)).view(needed.shape)
        strongest = torch.zeros(needed.shape)
        if needed.any():
            strongest[needed] = self._output.strongest(residual[needed])
        return strongest

    def tensors(self) -> dict[str, Tensor]:
        return self._map.tensors()

    def params(self) -> dict[str, Any]:
        return self._settings

    def identity(self) -> dict[str, Any]:
        return self._settings | {"input_sae": self._input.identity, "output_sae": self._output.identity}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], params: dict[str, Any], device: str) -> "DSPASteering":
        return cls(ShippedMap.restore(tensors, params["map"]), params, device)

    def to(self, device: torch.device | str) -> "DSPASteering":
        return DSPASteering(self._map, self._settings, str(device))

    def tally(self) -> SelectionTally:
        return SelectionTally(self._map)

    def figures(self, tallies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """See `dspa.diagnostics.LEGEND`."""
        return selection_figures(self._map, tallies)
