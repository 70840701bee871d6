"""Dense steering: one vector at one layer, from the mean residual stream over the tokens of preferred answers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.method import BaseShape, MethodConfig
from harness.model.aligned import AlignedModel
from harness.model.intervention import Positions, RowState, Sums, register_intervention
from harness.model.residuals import Seen, batches_by_length, encode_triples, residual_flops, triple_residuals

Tokens = Literal["mean", "last"]
"""Which tokens of an answer stand for it: the mean over all of them, or the last one."""
Multiplier = Annotated[float, Field(allow_inf_nan=False, description="multiplier; negative ones steer away")]
Residual = Float[Tensor, "batch pos d_model"]
Steered = Bool[Tensor, "batch pos"]


class DirectionMethod(MethodConfig):
    """Base of the methods that add a multiple of one vector, found in answers' states, after one layer."""

    single_pass: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    online: ClassVar[frozenset[str]] = frozenset({"scale", "positions"})
    diagnostics: ClassVar[Mapping[str, str]] = {
        "relative_step": "length of the added vector over the mean length of the residual stream that it is added to"
    }
    layer: Annotated[int, Field(ge=0, description="block whose output is read and changed")]
    scale: Multiplier
    positions: Positions = Field("generation", description="tokens that are steered: the answer's, or the prompt's too")
    batch_size: Annotated[int, Field(ge=1, description="triples per forward while fitting")] = 32

    def check(self, base: BaseShape) -> None:
        """The layer must be in the base."""
        if self.layer >= base.n_layers:
            raise ValueError(f"layer {self.layer} is not in {base.name}, which has layers 0 to {base.n_layers - 1}")

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """The features; finding the vector in them is left out."""
        encoded = encode_triples(base, triples)
        features = residual_flops(encoded, last_layer=self.layer, rates=rates, batch_size=self.batch_size)
        return {"features": features}

    def adjust(self, fitted: AlignedModel) -> AlignedModel:
        """The same vector, added by this method's ``online`` settings."""
        assert isinstance(fitted.intervention, DirectionSteering)
        return self.adding(fitted, fitted.intervention.vector)

    def adding(self, base: AlignedModel, vector: Float[Tensor, " d_model"]) -> AlignedModel:
        """The artifact: the base with ``scale`` times the vector added."""
        settings = self.model_dump(mode="json", include={"layer", "scale", "positions"})
        steering = DirectionSteering(vector.to(base.device), settings)
        return base.derive(method=self.name, params=self.model_dump(mode="json"), intervention=steering)


def response_differences(
    base: AlignedModel, triples: Sequence[Triple], *, layer: int, tokens: Tokens, meter: Meter, batch_size: int
) -> Float[Tensor, "n d_model"]:
    """State of the chosen minus state of the rejected answer of every triple, in order, in fp32 on the CPU.

    The state of an answer is its residual stream after block ``layer``, teacher-forced behind the prompt: averaged
    over its tokens, or at the last one. BOS, EOS and pad do not count, nor does the token that ends the turn. Raises
    ValueError, before any forward, for a triple that does not fit the context or whose answer has no token that counts.
    """
    encoded = encode_triples(base, triples)
    special = set(base.chat.special_ids)
    for triple, ids in zip(triples, encoded, strict=True):
        if set(ids.chosen) <= special or set(ids.rejected) <= special:
            raise ValueError(
                f"triple {triple.key[:12]}: an answer has no token but special ones; leave it out of the triples file"
            )
    differences = torch.zeros(len(encoded), base.model.config.get_text_config().hidden_size)
    found = []
    for rows in meter.shared(batches_by_length(encoded, batch_size)):
        _, answers = triple_residuals(base, [encoded[r] for r in rows], set(), {layer}, meter)
        states = _states(answers, layer, tokens)
        found.append((rows, (states[0::2] - states[1::2]).cpu()))
    for rows, values in meter.ranks.collect(found):
        differences[rows] = values
    return differences


def _states(answers: Seen, layer: int, tokens: Tokens) -> Float[Tensor, "row d_model"]:
    weight = answers.counted.float()
    if tokens == "last":
        weight = weight * (weight.cumsum(1) == weight.sum(1, keepdim=True))
    weight = weight / weight.sum(1, keepdim=True)
    return (answers.residual[layer].float() * weight[..., None]).sum(1)


class FixedSteering:
    """What is alike in interventions that read nothing of the prompt; ``settings`` has ``positions``."""

    read_layers: tuple[int, ...] = ()

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    @property
    def positions(self) -> Positions:
        return self._settings["positions"]

    def condition(self, residual: Mapping[int, Tensor], prompt: Tensor, *, tally: Sums | None = None) -> RowState:
        """Nothing depends on the prompt."""
        return {}

    def params(self) -> dict[str, Any]:
        return self._settings

    def identity(self) -> dict[str, Any]:
        return self._settings

    def tally(self) -> Sums:
        return Sums()


@register_intervention("direction")
class DirectionSteering(FixedSteering):
    """Adds ``scale`` times a fixed vector at every steered token; a harness Intervention."""

    def __init__(self, vector: Float[Tensor, " d_model"], settings: dict[str, Any]) -> None:
        """``settings``: layer, scale, positions."""
        super().__init__(settings)
        self._vector, self._step = vector, vector * settings["scale"]

    @property
    def vector(self) -> Float[Tensor, " d_model"]:
        """What is added, before it is scaled."""
        return self._vector

    @property
    def write_layers(self) -> tuple[int, ...]:
        return (self._settings["layer"],)

    def delta(
        self, layer: int, residual: Residual, state: RowState, steered: Steered, *, tally: Sums | None = None
    ) -> Residual:
        """The same step at every steered token."""
        if tally is not None:
            norms = torch.linalg.vector_norm(residual.float(), dim=-1) * steered
            tally.add(tokens=steered.sum(), norms=norms.sum())
        return steered[..., None] * self._step

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self._vector}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], params: dict[str, Any], device: str) -> "DirectionSteering":
        return cls(tensors["vector"].to(device), params)

    def to(self, device: torch.device | str) -> "DirectionSteering":
        return DirectionSteering(self._vector.to(device), self._settings)

    def figures(self, tallies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """``relative_step``: length of the step over the mean length of the residual stream where it was added."""
        tokens, norms = (sum(tally.get(name, 0) for tally in tallies) for name in ("tokens", "norms"))
        return {"relative_step": float(torch.linalg.vector_norm(self._step)) * tokens / norms} if tokens else {}
