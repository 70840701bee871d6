"""repe: Representation Engineering, a dense direction from the principal directions of answers' hidden states."""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from baselines.direction import DirectionMethod, Multiplier, response_differences
from harness.compute import Meter
from harness.data.triples import Triple
from harness.method import BaseShape, register_method
from harness.model.aligned import AlignedModel


@register_method("repe")
class RepE(DirectionMethod):
    """arXiv 2310.01405 as the DSPA paper has it: h += scale * v, v the mean difference within 16 directions.

    The DSPA paper gives the layer (that of its output SAE), 16 directions and the scale of 0.5. Ours: a triple's
    difference is the mean residual stream over the chosen answer's tokens minus that over the rejected one's; the
    directions are those of the largest second moments of the differences, not centred; v is the mean difference's
    projection on their span and keeps its length; where it is added. Centring would take out the mean, the very thing
    that v is to keep. The original takes differences in random order, so that their mean is about zero, and centres:
    in expectation the same directions.
    """

    directions: Annotated[int, Field(ge=1, description="principal directions; at most the triples and the width")] = 16
    scale: Multiplier = 0.5

    def check(self, base: BaseShape) -> None:
        """The layer must be in the base, the directions in its width."""
        super().check(base)
        if self.directions > base.d_model:
            raise ValueError(f"{self.directions} directions are more than the {base.d_model} dimensions of {base.name}")

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Deterministic: ``seed`` has no effect. Raises ValueError for fewer triples than directions."""
        if len(triples) < self.directions:
            raise ValueError(
                f"{len(triples)} triples span fewer than {self.directions} directions; give more triples, or set "
                f"`directions` to {len(triples)} or less"
            )
        with meter.stage("features"):
            differences = response_differences(
                base, triples, layer=self.layer, tokens="mean", meter=meter, batch_size=self.batch_size
            )
        signature = ("project", self.directions, *differences.shape)
        with meter.stage("directions"), meter.step(signature, tokens=0, kind="forward"):
            vector = projected_mean(differences, self.directions)
        return self.adding(base, vector)


def projected_mean(differences: Float[Tensor, "n d_model"], directions: int) -> Float[Tensor, " d_model"]:
    """m V^T V: m the mean difference, V the first right singular vectors (rows) of the differences, not centred.

    The sign that a decomposition gives a direction does not matter. In fp64; the result is fp32. torch's FLOP counter
    sees the two products, not the decomposition.
    """
    exact = differences.double()
    basis = torch.linalg.svd(exact, full_matrices=False).Vh[:directions]
    return (exact.mean(0, keepdim=True) @ basis.T @ basis)[0].float()
