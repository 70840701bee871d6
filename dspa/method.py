"""DSPA as an alignment method: triples -> conditional-difference map -> steered model. No weight changes."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, ClassVar

from pydantic import Field

from dspa.density import measure_densities, predict_densities
from dspa.diagnostics import LEGEND
from dspa.map.artifact_map import ArtifactMap, MapOptions
from dspa.map.condiff import ConditionalDifferenceMap, Gate
from dspa.saes.sae import check_sae, load_sae, sae_sizes
from dspa.steering import DSPASteering, Mode, Scale, SteeringSettings
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.refs import BaseShape, SAERef
from harness.data.triples import Triple
from harness.method import MethodConfig, register_method
from harness.model.aligned import AlignedModel
from harness.model.intervention import Positions


@register_method("dspa")
class DSPA(MethodConfig):
    """Dynamic SAE Steering for Preference Alignment (arXiv 2603.21461). Defaults are the paper's where it gives them;
    the percentile, the strict gate and the steered positions are ours (see docs/dspa.md)."""

    single_pass: ClassVar[bool] = True
    diagnostics: ClassVar[Mapping[str, str]] = LEGEND
    input_sae: SAERef = Field(description="SAE whose latents describe the prompt (layer l_in)")
    output_sae: SAERef = Field(description="SAE whose latents are edited (layer l_out >= l_in)")
    percentile: Annotated[float, Field(ge=0, le=100)] = 95.0
    gate: Gate = "paper"
    min_support: Annotated[int, Field(ge=1)] = 5
    truncate: Annotated[int, Field(ge=1)] | None = Field(
        16, description="entries kept at either end of each row of the map; null ships the exact factored map"
    )
    demix: bool = Field(False, description="undo the co-activation of the selected latents (appendix A.4)")
    demix_ridge: Annotated[float, Field(gt=0, description="added to the diagonal of E[g g^T]")] = 1e-3
    keep_factors: bool = Field(True, description="keep the factors in the artifact: intervals, demix, truncate: null")
    k_prompt: Annotated[int, Field(ge=1)] = 32
    k_diff: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(ge=0)] = 0.2
    mode: Mode = "ablate"
    scale: Scale = "max"
    positions: Positions = "generation"
    batch_size: Annotated[int, Field(ge=1, description="triples per forward while fitting")] = 32

    def check(self, base: BaseShape) -> None:
        """The SAEs must fit the base, share their width, and the output layer must not precede the input layer; the
        options of the map must make sense together."""
        self._map_options()
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
        """Deterministic: ``seed`` has no effect."""
        device = str(base.device)
        with meter.stage("features"):
            saes = {"input_sae": load_sae(self.input_sae, device), "output_sae": load_sae(self.output_sae, device)}
            found = measure_densities(base, triples, **saes, meter=meter, batch_size=self.batch_size)
        with meter.stage("map"), meter.step(("map", len(triples)), tokens=0, kind="forward"):
            full = ConditionalDifferenceMap.estimate(
                found.prompt, found.difference, percentile=self.percentile, gate=self.gate, min_support=self.min_support
            )
            fitted = ArtifactMap.build(full.to(device), self._map_options())
        params = self.model_dump(mode="json") | {name: getattr(self, name).located().model_dump() for name in saes}
        online = {name: params[name] for name in SteeringSettings.model_fields if name in params}
        settings = SteeringSettings(**online, map=fitted.settings, norm_limits=found.norm_limits)
        return base.derive(method="dspa", params=params, intervention=DSPASteering(fitted, settings, device))

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """An upper bound for the map: every input latent has a row of its own."""
        saes = {"input_sae": self.input_sae, "output_sae": self.output_sae}
        features = predict_densities(base, triples, **saes, rates=rates, batch_size=self.batch_size)
        d_in, d_out = (sae_sizes(ref)[2] for ref in saes.values())
        return {"features": features, "map": 0 if self.truncate is None else 2 * len(triples) * d_in * d_out}

    def _map_options(self) -> MapOptions:
        return MapOptions(**{field.name: getattr(self, field.name) for field in fields(MapOptions)})
