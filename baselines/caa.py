"""caa: Contrastive Activation Addition, the mean difference of answers' hidden states added at one layer."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from baselines.direction import DirectionSteering, Tokens, check_layer, predict_differences, response_differences
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.intervention import Positions
from harness.method import BaseShape, MethodConfig, register_method
from harness.model import AlignedModel
from harness.preferences import Triple

_ONLINE = {"layer", "scale", "positions"}


@register_method("caa")
class CAA(MethodConfig):
    """arXiv 2312.06681: h += scale * (mean over triples of chosen - rejected) after the prompt.

    The original contrasts two answers to a multiple-choice question at the token of the answer letter, and tries
    layers and multipliers. Preference triples have no such letter: an answer's state is the mean over its tokens, or
    ``tokens: last``, which is closest to the original. The multiplier of 1 is ours, among those that it tries.
    """

    single_pass: ClassVar[bool] = True
    layer: Annotated[int, Field(ge=0, description="block whose output is read and changed")]
    scale: Annotated[float, Field(allow_inf_nan=False, description="multiplier; negative ones steer away")] = 1.0
    tokens: Tokens = "mean"
    positions: Positions = "generation"
    batch_size: Annotated[int, Field(ge=1, description="triples per forward while fitting")] = 32

    def check(self, base: BaseShape) -> None:
        """The layer must be in the base."""
        check_layer(self.layer, base)

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Deterministic: ``seed`` has no effect."""
        with meter.stage("features"):
            differences = response_differences(
                base, triples, layer=self.layer, tokens=self.tokens, meter=meter, batch_size=self.batch_size
            )
        settings = self.model_dump(mode="json", include=_ONLINE)
        return base.derive(
            method="caa",
            params=self.model_dump(mode="json"),
            intervention=DirectionSteering(differences.mean(0).to(base.device), settings),
        )

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """The features."""
        return predict_differences(base, triples, layer=self.layer, rates=rates, batch_size=self.batch_size)
