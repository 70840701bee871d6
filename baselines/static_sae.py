"""static_sae: one fixed set of latents for every prompt, from the global mean density difference."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines.direction import FixedSteering, Residual, Steered
from dspa.audit.snippets import snippets_of_triples
from dspa.density import measure_densities, predict_densities
from dspa.saes.sae import check_sae, load_sae
from dspa.steering import Mode, Scale, latent_change, latent_sets, movable_latents
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.refs import SAERef
from harness.data.triples import Triple
from harness.method import BaseShape, MethodConfig, register_method
from harness.model.aligned import AlignedModel
from harness.model.intervention import LatentEdits, Positions, RowState, Sums, register_intervention

_ONLINE = frozenset({"alpha", "scale", "active_only", "positions"})


@register_method("static_sae")
class StaticSAE(MethodConfig):
    """Edits a fixed global latent set at every steered token: no prompt condition and, by default, no token gate.

    The paper gives layer and scale 0.5; the set size, editing both directions and the step (scale times the largest
    activation) are ours. ``active_only`` gives the control named in the DSPA notes: the same global set with DSPA's
    token-active edit.
    """

    single_pass: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    online: ClassVar[frozenset[str]] = _ONLINE
    diagnostics: ClassVar[Mapping[str, str]] = {
        "jaccard": "mean Jaccard similarity of the latent sets of two prompts; 1: every prompt gets the same set",
        "set_size": "latents selected per prompt",
        "edited_share": "share of the steered tokens that were changed",
    }
    sae: SAERef = Field(description="SAE whose latents are edited")
    k_diff: Annotated[int, Field(ge=1, description="latents edited in either direction")] = 16
    alpha: Annotated[float, Field(ge=0, description="size of the edit")] = 0.5
    mode: Mode = Field(
        "both", description="what is edited: latents of rejected answers down, of chosen ones up, or both"
    )
    scale: Scale = Field("max", description="what alpha multiplies: the largest activation, or the latent's own")
    active_only: bool = Field(False, description="edit only latents that are active at the token")
    positions: Positions = Field("generation", description="tokens that are steered: the answer's, or the prompt's too")
    batch_size: Annotated[int, Field(ge=1, description="triples per forward while fitting")] = 32

    def check(self, base: BaseShape) -> None:
        """The SAE must fit the base."""
        check_sae(self.sae, base)

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Deterministic: ``seed`` has no effect."""
        device = str(base.device)
        with meter.stage("features"):
            sae = load_sae(self.sae, device)
            densities = measure_densities(
                base, triples, input_sae=None, output_sae=sae, meter=meter, batch_size=self.batch_size
            )
        with meter.stage("map"):
            mean = densities.difference.mean()[None].to(device)
            latents, sign = (found[0] for found in latent_sets(mean, self.mode, self.k_diff))
            latents, sign = latents[latents >= 0], sign[latents >= 0]
        located = {"sae": self.sae.located().model_dump()}
        settings = (
            self.model_dump(mode="json", include=set(_ONLINE)) | located | {"norm_limit": densities.norm_limits[1]}
        )
        steering = StaticSteering(latents, sign, settings, device)
        params = self.model_dump(mode="json") | located
        return base.derive(method="static_sae", params=params, intervention=steering)

    def adjust(self, fitted: AlignedModel) -> AlignedModel:
        """The same latents, edited by this method's ``online`` settings."""
        assert isinstance(fitted.intervention, StaticSteering)
        changed = self.model_dump(mode="json", include=set(self.online))
        return fitted.derive(params={**fitted.params, **changed}, intervention=fitted.intervention.changed(**changed))

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """The features; picking latents by their mean costs no product."""
        features = predict_densities(
            base, triples, input_sae=None, output_sae=self.sae, rates=rates, batch_size=self.batch_size
        )
        return {"features": features}


@register_intervention("static_sae")
class StaticSteering(FixedSteering):
    """The same latents edited at every steered token; a harness Intervention."""

    def __init__(self, latents: Tensor, sign: Tensor, settings: dict[str, Any], device: str) -> None:
        super().__init__(settings)
        self._latents, self._sign = latents, sign[None]
        self._sae = load_sae(SAERef.model_validate(settings["sae"]), device)
        self._rows = self._sae.encoder.gather(latents[None])

    @property
    def write_layers(self) -> tuple[int, ...]:
        return (self._sae.layer,)

    def delta(
        self, layer: int, residual: Residual, state: RowState, steered: Steered, *, tally: Sums | None = None
    ) -> Residual:
        """Decoder rows times the change of the fixed latents."""
        change, _, scale = self._change(residual, steered)
        if tally is not None:
            tally.add(tokens=steered.sum(), changed=(change != 0).any(-1).sum())
        return self._sae.encoder.decode_change(change, self._rows, scale).view_as(residual)

    @property
    def d_sae(self) -> int:
        """Latents of the SAE that is edited."""
        return self._sae.d_sae

    def edits(self, layer: int, residual: Residual, state: RowState, steered: Steered) -> LatentEdits:
        """What `delta` edits."""
        change, latents, _ = self._change(residual, steered)
        shape = *residual.shape[:2], len(self._latents)
        return LatentEdits(self._latents.expand(len(residual), -1), latents.view(shape), change.view(shape))

    def snippets(
        self, model: AlignedModel, triples: Sequence[Triple], latents: Sequence[int], count: int
    ) -> dict[int, list[dict[str, Any]]]:
        """Where the latents fire in ``triples``."""
        return snippets_of_triples(model, self._sae, self._settings["norm_limit"], triples, latents, count)

    def _change(self, residual: Residual, steered: Steered) -> tuple[Tensor, Tensor, Tensor]:
        """(change of the latents, the latents, what undoes the SAE's normalisation), all tokens in one row."""
        # One set for all rows: the whole batch is one row with many tokens, and the set need not be copied.
        tokens = residual.flatten(0, 1)[None]
        steered_tokens = steered.flatten()[None] & self._sae.fits_norm(tokens, self._settings["norm_limit"])
        latents, scale = self._sae.encoder.encode_selected(tokens, self._rows)
        movable = movable_latents(latents, self._sign, steered_tokens, active_only=self._settings["active_only"])
        strongest = self._sae.encoder.strongest(tokens[0])[None] if self._settings["scale"] == "max" else None
        return latent_change(latents, self._sign, strongest, movable, alpha=self._settings["alpha"]), latents, scale

    def tensors(self) -> dict[str, Tensor]:
        return {"latents": self._latents, "sign": self._sign[0]}

    def identity(self) -> dict[str, Any]:
        return self._settings | {"sae": self._sae.identity}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], params: dict[str, Any], device: str) -> "StaticSteering":
        return cls(tensors["latents"], tensors["sign"], params, device)

    def changed(self, **settings: Any) -> "StaticSteering":
        """The same latents under other settings."""
        return StaticSteering(self._latents, self._sign[0], self._settings | settings, str(self._latents.device))

    def to(self, device: torch.device | str) -> "StaticSteering":
        return StaticSteering(self._latents.to(device), self._sign[0].to(device), self._settings, str(device))

    def figures(self, tallies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Every prompt gets the same set, so its Jaccard similarity is 1 by construction."""
        if not tallies:
            return {}
        tokens, changed = (sum(tally.get(name, 0) for tally in tallies) for name in ("tokens", "changed"))
        edited = {"edited_share": changed / tokens} if tokens else {}
        return {"jaccard": 1.0, "set_size": float(len(self._latents)), **edited}
