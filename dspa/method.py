"""DSPA as an alignment method: triples -> conditional-difference map -> steered model. No weight changes."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dspa.attribution import attribute_margins, predict_attribution
from dspa.controls import Control, prompt_bank
from dspa.density import Densities, measure_densities, predict_densities
from dspa.diagnostics import LEGEND
from dspa.map.artifact_map import ArtifactMap, MapOptions
from dspa.map.condiff import ConditionalDifferenceMap, Gate, budget_percentile
from dspa.map.kernel import unexplained_share
from dspa.map.ridge import RidgeMap, most_flops
from dspa.map.score_map import ScoreMap, Scores
from dspa.saes.sae import check_sae, load_sae, sae_sizes
from dspa.steering import DSPASteering, Mode, Scale, SteeringSettings
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.refs import BaseShape, SAERef
from harness.data.triples import Triple
from harness.method import MethodConfig, Preview, register_method
from harness.model.aligned import AlignedModel
from harness.model.intervention import Condition, Positions

_ONLY_ROWS = (
    "percentile",
    "gate",
    "min_support",
    "shrink",
    "k_prompt",
    "sure_only",
    *(field.name for field in fields(MapOptions)),
)


@register_method("dspa")
class DSPA(MethodConfig):
    """Dynamic SAE Steering for Preference Alignment (arXiv 2603.21461). Defaults are the paper's where it gives them;
    the percentile, the strict gate and the steered positions are ours, other ``scores`` than rows go beyond it (see
    docs/dspa.md)."""

    single_pass: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    online: ClassVar[frozenset[str]] = frozenset({"k_prompt", "k_diff", "alpha", "mode", "scale"})
    diagnostics: ClassVar[Mapping[str, str]] = LEGEND
    input_sae: SAERef = Field(description="SAE whose latents describe the prompt (layer l_in)")
    output_sae: SAERef = Field(description="SAE whose latents are edited (layer l_out >= l_in)")
    scores: Scores = Field(
        "rows",
        description="how a prompt's scores are made: rows (the paper's), ridge (see dspa_ridge), mean (no condition)",
    )
    rank: Annotated[int, Field(ge=1)] | None = Field(
        128, description="factors kept of the ridge scores; null keeps all (the artifact says what that costs in error)"
    )
    percentile: Annotated[float, Field(ge=0, le=100)] | Literal["by_budget"] = Field(
        95.0, description="of a latent's densities: from there its gate is open; by_budget: see budget_percentile"
    )
    gate: Gate = Field(
        "paper",
        description="triples of a row of the map: by percentile alone (the paper), or active and min_support too",
    )
    min_support: Annotated[int, Field(ge=1, description="triples that a row of the map needs (strict gate)")] = 5
    shrink: float = Field(0.0, ge=0, allow_inf_nan=False, description="mean triples added to each row (strict gate)")
    truncate: Annotated[int, Field(ge=1)] | None = Field(
        16, description="entries kept at either end of each row of the map; null ships the exact factored map"
    )
    demix: bool = Field(False, description="undo the co-activation of the selected latents (appendix A.4)")
    demix_ridge: Annotated[float, Field(gt=0, description="added to the diagonal of E[g g^T]")] = 1e-3
    keep_factors: bool = Field(True, description="keep the factors in the artifact: intervals, demix, truncate: null")
    select: Literal["scores", "causal"] = Field(
        "scores",
        description="what the map is made of: differences of density (the paper), or each output latent's effect on "
        "log p(chosen) - log p(rejected), by gradient",
    )
    k_prompt: Annotated[int, Field(ge=1, description="input latents that describe a prompt: its densest")] = 32
    k_diff: Annotated[int, Field(ge=1, description="output latents selected in either direction")] = 16
    sure_only: bool = Field(False, description="edit only selected latents whose score's 95 % interval has no 0")
    control: Control | None = Field(None, description="edit random latents, or those of another prompt: not a method")
    alpha: Annotated[
        float, Field(ge=0, description="size of the edit; 1 with mode ablate takes a latent out whole")
    ] = 0.2
    mode: Mode = Field(
        "ablate", description="what is edited: latents of rejected answers down, of chosen ones up, or both"
    )
    scale: Scale = Field(
        "max", description="what alpha multiplies: the largest activation, or the latent's own (no full encode)"
    )
    positions: Positions = Field("generation", description="tokens that are steered: the answer's, or the prompt's too")
    condition: Condition = Field(
        "conversation", description="prompt tokens that densities are of: all (the paper), or the last user turn's"
    )
    batch_size: Annotated[int, Field(ge=1, description="triples per forward while fitting")] = 32

    def check(self, base: BaseShape) -> None:
        """The SAEs must fit the base, share their width, and the output layer must not precede the input layer; the
        options of the map must make sense together."""
        self._check_options()
        self._check_small_budget()
        input_layer, width = check_sae(self.input_sae, base)
        output_layer, output_width = check_sae(self.output_sae, base)
        if output_layer < input_layer:
            raise ValueError(
                f"output SAE {self.output_sae} is at layer {output_layer}, before the input SAE's layer {input_layer}; "
                "the condition must be known before the edit, so choose l_out >= l_in"
            )
        if width != output_width:
            raise ValueError(
                f"SAE widths differ: {self.input_sae} has {width} latents, {self.output_sae} has {output_width}; "
                "the map is between SAEs of the same width"
            )
        for name in ("truncate", "k_prompt", "k_diff"):
            value = getattr(self, name)
            if value is not None and value > width:
                raise ValueError(f"{name}: {value} is more than the {width} latents of the SAEs; give at most {width}")

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Deterministic: ``seed`` has no effect, but for the training prompts of ``control: other_prompt``."""
        device = str(base.device)
        with meter.stage("features"):
            saes = {"input_sae": load_sae(self.input_sae, device), "output_sae": load_sae(self.output_sae, device)}
            found = measure_densities(
                base, triples, **saes, meter=meter, batch_size=self.batch_size, condition=self.condition
            )
        if self.select == "causal":
            with meter.stage("attribution"):
                effects = attribute_margins(
                    base, triples, output_sae=saes["output_sae"], norm_limit=found.norm_limits[1],
                    positions=self.positions, meter=meter, batch_size=self.batch_size,
                )  # fmt: skip
            found = replace(found, difference=effects)
        with meter.stage("map"), meter.step(("map", len(triples)), tokens=0, kind="forward"):
            fitted, figures = self._fit_map(found, device)
        if self.scores != "ridge":  # a diagnostic, no part of the method, so nobody is billed
            figures = _conditionality(found, device)
        params = self.model_dump(mode="json") | {name: getattr(self, name).located().model_dump() for name in saes}
        online = {name: params[name] for name in SteeringSettings.model_fields if name in params}
        options = fitted.settings if isinstance(fitted, ArtifactMap) else None
        settings = SteeringSettings(**online, map=options, norm_limits=found.norm_limits, fit_figures=figures)
        bank = prompt_bank(found.prompt, seed) if self.control == "other_prompt" else None
        return base.derive(method=self.name, params=params, intervention=DSPASteering(fitted, settings, device, bank))

    def adjust(self, fitted: AlignedModel) -> AlignedModel:
        """The same map, steered by this method's ``online`` settings."""
        steering = fitted.intervention
        assert isinstance(steering, DSPASteering)
        changed = {name: getattr(self, name) for name in self.online}
        settings = steering.settings.model_copy(update=changed)
        adjusted = DSPASteering(steering.condition_map, settings, str(fitted.device), steering.bank)
        return fitted.derive(params={**fitted.params, **changed}, intervention=adjusted)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """An upper bound for the map: every input latent has a row of its own (``rows``), every latent is active in
        every text (``ridge``). (Of SAEs with a norm filter, features and attribution are bounds too.)"""
        saes = {"input_sae": self.input_sae, "output_sae": self.output_sae}
        features = predict_densities(
            base, triples, **saes, rates=rates, batch_size=self.batch_size, condition=self.condition
        )
        d_in, d_out = (sae_sizes(ref)[2] for ref in saes.values())
        rows = 0 if self.truncate is None else 2 * len(triples) * d_in * d_out
        of_map = {"rows": rows, "mean": 0, "ridge": most_flops(len(triples), d_in, d_out, rank=self.rank)}
        stages = {"features": features}
        if self.select == "causal":
            stages["attribution"] = predict_attribution(
                base, triples, output_sae=self.output_sae, positions=self.positions, rates=rates,
                batch_size=self.batch_size,
            )  # fmt: skip
        return stages | {"map": of_map[self.scores]}

    def preview(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> Preview | None:
        """The unexplained share, from the densities that a fit measures; None where it is made of other evidence."""
        if self.select == "causal":
            return None
        refs = {"input_sae": self.input_sae, "output_sae": self.output_sae}
        options = {"batch_size": self.batch_size, "condition": self.condition}
        flops = predict_densities(base, triples, **refs, rates=rates, **options)

        def measure(loaded: AlignedModel) -> dict[str, float]:
            meter = Meter(loaded.model, sample_profile=False)
            saes = {name: load_sae(ref, str(loaded.device)) for name, ref in refs.items()}
            with meter.stage("features"):
                found = measure_densities(loaded, triples, **saes, meter=meter, **options)
            return _conditionality(found, str(loaded.device))

        return Preview(flops, f"{self.input_sae} {self.output_sae} {self.condition}", measure)

    def _fit_map(self, found: Densities, device: str) -> tuple[ScoreMap, dict[str, float]]:
        """The map that ``scores`` names, and what was found out while fitting it."""
        if self.scores == "mean":
            mean = found.difference.mean().to(device)
            return RidgeMap.of_mean(mean, d_in=found.prompt.width, n_triples=len(found.prompt)), {}
        if self.scores == "ridge":
            ridge, left_out, error = RidgeMap.fit(found.prompt.to(device), found.difference.to(device), rank=self.rank)
            return ridge, left_out.figures | {"rank_error": error}
        percentile = self.percentile
        if percentile == "by_budget":
            percentile = budget_percentile(len(found.prompt), self.min_support)
        options = {"gate": self.gate, "min_support": self.min_support, "shrink": self.shrink}
        full = ConditionalDifferenceMap.estimate(found.prompt, found.difference, percentile=percentile, **options)
        return ArtifactMap.build(full.to(device), self._map_options()), {}

    def _check_options(self) -> None:
        self._map_options()
        for name in _ONLY_ROWS if self.scores != "rows" else ():
            self._refuse_if_set(name, "rows")
        if self.scores != "ridge":
            self._refuse_if_set("rank", "ridge")

    def _refuse_if_set(self, name: str, read_by: Scores) -> None:
        value = getattr(self, name)
        if value != type(self).model_fields[name].default:
            raise ValueError(
                f"{name}: {value} has no effect with scores: {self.scores}; only {read_by} reads it, so leave it out"
            )

    def _check_small_budget(self) -> None:
        """Refuse options for few triples that cannot work, or that nothing would read."""
        if self.shrink and self.gate != "strict":
            raise ValueError(f"shrink is for rows divided by their support; set gate: strict, not {self.gate}")
        if self.shrink and self.demix:
            raise ValueError("demix weighs the rows as they were fitted; set shrink: 0, or demix: false")
        default = type(self).model_fields["min_support"].default
        if self.shrink and self.percentile != "by_budget" and self.min_support != default:
            raise ValueError(f"with shrink no row is left out for its support; leave min_support at {default}")
        if self.sure_only and (self.demix or not self.keep_factors):
            raise ValueError("sure_only needs the intervals of scores; set keep_factors: true and demix: false")

    def _map_options(self) -> MapOptions:
        return MapOptions(**{field.name: getattr(self, field.name) for field in fields(MapOptions)})


def _conditionality(found: Densities, device: str) -> dict[str, float]:
    share = unexplained_share(found.prompt.to(device), found.difference.to(device))
    return {} if share is None else {"unexplained_share": share}
