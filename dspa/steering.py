"""DSPA at inference: per-prompt latent sets from the map, edits of active latents while decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dspa.audit.snippets import snippets_of_triples
from dspa.controls import Control, other_prompt, random_latents
from dspa.density import density_of
from dspa.diagnostics import SelectionTally, selection_figures
from dspa.map.artifact_map import ArtifactMap, MapOptions
from dspa.map.condiff import below, extreme_columns
from dspa.map.ridge import RidgeMap
from dspa.map.score_map import ScoreMap, Scores
from dspa.map.sparse import SparseRows, pack, unpack
from dspa.saes.sae import ResidualSAE, load_sae
from harness.data.refs import SAERef
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.model.intervention import (
    Condition,
    LatentEdits,
    Mask,
    Positions,
    Residual,
    RowState,
    register_intervention,
)

_BANK = "bank."
Scale = Literal["max", "own"]
Mode = Literal["ablate", "augment", "both"]


class SteeringSettings(BaseModel):
    """What an artifact keeps of how DSPA steers, beside the map's tensors; see the fields of `dspa.method.DSPA`.

    ``scores`` says which map it is, and ``map`` how it is read (None: nothing to set). ``norm_limits``: largest norm of
    a token that the input SAE counts and the output SAE edits (None: no limit). ``fit_figures``: what the fit found out
    about itself, of `dspa.diagnostics.LEGEND`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    input_sae: SAERef
    output_sae: SAERef
    k_prompt: int
    k_diff: int
    alpha: float
    mode: Mode
    scale: Scale
    positions: Positions
    scores: Scores = "rows"
    map: MapOptions | None
    norm_limits: tuple[float | None, float | None]
    condition: Condition = "conversation"
    sure_only: bool = False
    control: Control | None = None
    fit_figures: dict[str, float] = {}


@dataclass(frozen=True, eq=False)
class Selection:
    """What is decided for each prompt of a batch, step by step (arXiv 2603.21461, "Online", steps 1-3)."""

    density: Float[Tensor, "batch d_in"]
    """Share of the prompt's tokens on which each input latent fires."""
    gates: Int[Tensor, "batch k_prompt"]
    """The densest input latents; -1: none. Without columns where the scores are not made of them."""
    scores: Float[Tensor, "batch d_out"]
    """s(x) of every output latent."""
    latents: Int[Tensor, "batch k_out"]
    """The output latents to be edited; -1: none."""
    sign: Float[Tensor, "batch k_out"]
    """-1: it is ablated, +1: augmented, 0: there is none."""


@register_intervention("dspa")
class DSPASteering:
    """The online half of DSPA; a harness Intervention."""

    def __init__(
        self, condition_map: ScoreMap, settings: SteeringSettings, device: str = "cpu", bank: SparseRows | None = None
    ) -> None:
        """``bank``: densities of training prompts, for ``control: other_prompt``."""
        self.condition_map = condition_map.to(device)
        """The map the sets are selected by."""
        self.settings = settings
        self.bank = bank
        self.positions: Positions = settings.positions
        self.condition_on: Condition = settings.condition
        self._input: ResidualSAE = load_sae(settings.input_sae, device)
        self._output: ResidualSAE = load_sae(settings.output_sae, device)
        self.saes = self._input, self._output
        self.read_layers, self.write_layers = (self._input.layer,), (self._output.layer,)
        # On an accelerator, looking which tokens need the full encode would make the host wait at every step.
        self._lazy = torch.device(device).type == "cpu"

    def select(self, residual: Residual, prompt: Mask) -> Selection:
        """The latent sets of prompts, from the residual stream at the input SAE's layer over their tokens."""
        settings = self.settings
        density = density_of(self._input, residual, prompt, settings.norm_limits[0])
        if settings.control == "other_prompt":
            assert self.bank is not None
            density = other_prompt(density, self.bank)
        gates = top_latents(density, settings.k_prompt) if settings.scores == "rows" else _no_gates(density)
        scores = self.condition_map.scores(gates, density)
        latents, sign = latent_sets(scores, settings.mode, settings.k_diff)
        if settings.sure_only:
            assert isinstance(self.condition_map, ArtifactMap)
            sure = self.condition_map.sure(gates, latents, sign)
            latents, sign = latents.masked_fill(~sure, -1), sign.masked_fill(~sure, 0.0)
        if settings.control == "random_latents":
            # Those that fired in training answers, but for any whose differences cancel exactly.
            fires = self.condition_map.mean_difference.nonzero()[:, 0]
            latents = random_latents(latents, density, fires)
            sign = sign.masked_fill(latents < 0, 0.0)
        return Selection(density, gates, scores, latents, sign)

    def condition(
        self, residual: Mapping[int, Residual], prompt: Mask, *, tally: SelectionTally | None = None
    ) -> RowState:
        """Selected latents with their signs (0: none), encoder and decoder rows, for each prompt."""
        selection = self.select(residual[self._input.layer], prompt)
        if tally is not None:
            tally.selected(selection.gates, selection.latents, selection.scores)
        index = selection.latents.clamp(min=0)
        return {**self._output.encoder.gather(index), "sign": selection.sign, "seen": torch.zeros_like(index[:, 0])}

    def delta(
        self, layer: int, residual: Residual, state: RowState, steered: Mask, *, tally: SelectionTally | None = None
    ) -> Residual:
        """W~_dec (f~' - f~): zero, to the bit, for tokens on which no selected latent is active."""
        change, _, scale = self._change(residual, state, steered)
        if tally is not None:
            tally.edited(change != 0, state["latents"], steered, state["seen"])
        return self._output.encoder.decode_change(change, state, scale)

    @property
    def d_sae(self) -> int:
        """Latents of the SAE that is edited."""
        return self._output.d_sae

    def edits(self, layer: int, residual: Residual, state: RowState, steered: Mask) -> LatentEdits:
        """What `delta` edits: f~ and f~' - f~ of the selected latents."""
        change, latents, _ = self._change(residual, state, steered)
        return LatentEdits(state["latents"].masked_fill(state["sign"] == 0, -1), latents, change)

    def snippets(
        self, model: AlignedModel, triples: Sequence[Triple], latents: Sequence[int], count: int
    ) -> dict[int, list[dict[str, Any]]]:
        """Where output latents fire in ``triples``."""
        return snippets_of_triples(model, self._output, self.settings.norm_limits[1], triples, latents, count)

    def _change(self, residual: Residual, state: RowState, steered: Mask) -> tuple[Tensor, Tensor, Tensor]:
        """(f~' - f~, f~, the factor that undoes the SAE's normalisation), for the selected latents."""
        limit = self.settings.norm_limits[1]
        allowed = steered if limit is None else steered & self._output.fits_norm(residual, limit)
        latents, scale = self._output.encoder.encode_selected(residual, state)
        movable = movable_latents(latents, state["sign"], allowed)
        strongest = self._strongest(residual, movable) if self.settings.scale == "max" else None
        return latent_change(latents, state["sign"], strongest, movable, alpha=self.settings.alpha), latents, scale

    def _strongest(self, residual: Residual, movable: Bool[Tensor, "batch pos k"]) -> Float[Tensor, "batch pos"]:
        """M of each token with an active selected latent, from the full encode; other tokens do not need it."""
        needed = movable.any(-1)
        if not self._lazy or needed.all():
            return self._output.encoder.strongest(residual.flatten(0, 1)).view(needed.shape)
        strongest = torch.zeros(needed.shape)
        if needed.any():
            strongest[needed] = self._output.encoder.strongest(residual[needed])
        return strongest

    def tensors(self) -> dict[str, Tensor]:
        bank = {} if self.bank is None else pack(self.bank)
        return self.condition_map.tensors() | {_BANK + name: tensor for name, tensor in bank.items()}

    def params(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        # An option that came later does not change what an artifact without it is.
        settings, added = self.params(), SteeringSettings.model_fields
        settings = {
            k: v
            for k, v in settings.items()
            if k != "fit_figures" and (added[k].is_required() or v != added[k].default)
        }
        return settings | {"input_sae": self._input.identity, "output_sae": self._output.identity}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], params: dict[str, Any], device: str) -> "DSPASteering":
        settings = SteeringSettings.model_validate(params)
        kept = below(tensors, _BANK)
        bank = unpack(kept, len(kept["length"]), load_sae(settings.input_sae, device).d_sae) if kept else None
        if settings.scores != "rows":
            return cls(RidgeMap.restore(tensors), settings, device, bank)
        assert settings.map is not None
        return cls(ArtifactMap.restore(tensors, settings.map), settings, device, bank)

    def to(self, device: torch.device | str) -> "DSPASteering":
        return DSPASteering(self.condition_map, self.settings, str(device), self.bank)

    def tally(self) -> SelectionTally:
        return SelectionTally(self.condition_map)

    def figures(self, tallies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """See `dspa.diagnostics.LEGEND`. Without tallies those of the fit alone."""
        return self.settings.fit_figures | selection_figures(self.condition_map, tallies)


def _no_gates(density: Float[Tensor, "batch d_in"]) -> Int[Tensor, "batch 0"]:
    return torch.zeros(len(density), 0, dtype=torch.long, device=density.device)


def top_latents(values: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, "batch k"]:
    """The k largest densities or scores of each row, only positive ones, ties to the lower latent; -1 fills up."""
    columns = extreme_columns(values, k)
    return columns.masked_fill(values.gather(1, columns) <= 0, -1)


def latent_sets(
    scores: Float[Tensor, "batch d_sae"], mode: Mode, k: int
) -> tuple[Int[Tensor, "batch k_out"], Float[Tensor, "batch k_out"]]:
    """The latents to be edited for the given scores (-1: none) and their signs: -1 ablate, +1 augment, 0 none.

    ``k`` latents in each direction that the mode has, those to be ablated first.
    """
    signs = {"ablate": (-1.0,), "augment": (1.0,), "both": (-1.0, 1.0)}[mode]
    sets = [top_latents(sign * scores, k) for sign in signs]
    return torch.cat(sets, dim=1), torch.cat([(s >= 0) * sign for s, sign in zip(sets, signs, strict=True)], dim=1)


def latent_change(
    latents: Float[Tensor, "batch pos k"],
    sign: Float[Tensor, "batch k"],
    strongest: Float[Tensor, "batch pos"] | None,
    movable: Bool[Tensor, "batch pos k"],
    *,
    alpha: float,
) -> Float[Tensor, "batch pos k"]:
    """f~' - f~ of the selected latents where ``movable``, 0 elsewhere (arXiv 2603.21461, "Online", step 4).

    ``sign`` is -1 to ablate, +1 to augment. The step is alpha * M with M = ``strongest``, the largest activation over
    all latents of the token (the paper, ``scale: max``); without ``strongest`` it is alpha times the latent's own
    activation (``scale: own``). Ablated latents stop at 0.
    """
    size = latents if strongest is None else strongest[..., None]
    moved = torch.addcmul(latents, sign[:, None], size, value=alpha).clamp_(min=0)
    # Not a product: NaN (an input normalisation divides by a padding token's norm, 0) must not spread from here.
    return torch.where(movable, moved.sub_(latents), 0.0)


def movable_latents(
    latents: Float[Tensor, "batch pos k"], sign: Float[Tensor, "batch k"], steered: Mask, *, active_only: bool = True
) -> Bool[Tensor, "batch pos k"]:
    """Where a latent may move: it is selected (``sign`` is not 0), its token is steered and, with ``active_only`` (the
    paper), it fires on that token."""
    allowed = steered[..., None] & (sign != 0)[:, None]
    return allowed & (latents > 0) if active_only else allowed
