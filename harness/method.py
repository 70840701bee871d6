"""What an alignment method is: a class whose fields are its hyper-parameters and whose `fit` makes an artifact."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from harness.preferences import Triple
from harness.registry import Registry

if TYPE_CHECKING:
    from harness.compute import Meter
    from harness.model import AlignedModel


@dataclass(frozen=True)
class BaseShape:
    """What is known of a base model before its weights are loaded."""

    name: str
    n_layers: int
    d_model: int


@runtime_checkable
class AlignmentMethod(Protocol):
    """``uses_triples`` is False for methods without a fit on preference data: one result for every budget."""

    name: ClassVar[str]
    uses_triples: ClassVar[bool]

    def check(self, base: BaseShape) -> None:
        """Raise ValueError, before any work, when the hyper-parameters or files do not fit the base model."""
        ...

    def fit(self, base: "AlignedModel", triples: Sequence[Triple], *, meter: "Meter", seed: int) -> "AlignedModel":
        """Align ``base``, unchanged itself, on ``triples``; each forward and training step is billed to ``meter``."""
        ...


class MethodConfig(BaseModel):
    """Base for methods: hyper-parameters come from a suite file, unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]
    uses_triples: ClassVar[bool] = True

    def check(self, base: BaseShape) -> None:
        """Nothing to check by default."""


METHODS: Registry[AlignmentMethod] = Registry("method")
register_method = METHODS.register
