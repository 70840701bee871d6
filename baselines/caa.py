"""caa: Contrastive Activation Addition, the mean difference of answers' hidden states added at one layer."""

from collections.abc import Sequence

from pydantic import Field

from baselines.direction import DirectionMethod, Multiplier, Tokens, response_differences
from harness.compute import Meter
from harness.data.triples import Triple
from harness.method import register_method
from harness.model.aligned import AlignedModel


@register_method("caa")
class CAA(DirectionMethod):
    """arXiv 2312.06681: h += scale * (mean over triples of chosen - rejected) after the prompt.

    The original contrasts two answers to a multiple-choice question at the token of the answer letter, and tries
    layers and multipliers. Preference triples have no such letter: an answer's state is the mean over its tokens, or
    ``tokens: last``, which is closest to the original. The multiplier of 1 is ours, among those that it tries.
    """

    scale: Multiplier = 1.0
    tokens: Tokens = Field("mean", description="which tokens of an answer stand for it")

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Deterministic: ``seed`` has no effect."""
        with meter.stage("features"):
            differences = response_differences(
                base, triples, layer=self.layer, tokens=self.tokens, meter=meter, batch_size=self.batch_size
            )
        return self.adding(base, differences.mean(0))
