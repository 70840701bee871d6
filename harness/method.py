"""What an alignment method is: a class whose fields are its hyper-parameters and whose `fit` makes an artifact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from harness.data.refs import BaseShape
from harness.data.triples import Triple
from harness.plugins import Registry

if TYPE_CHECKING:
    from harness.compute import Meter
    from harness.compute.rates import Rates
    from harness.model.aligned import AlignedModel


@dataclass(frozen=True)
class Preview:
    """Figures that a method can measure on triples before it is fitted, named as in its ``diagnostics``.

    ``flops``: what measuring them is predicted to take. ``subject``: what they depend on beside the triples; methods
    with equal subjects get equal figures. ``measure``: the figures, given the base with its weights.
    """

    flops: int
    subject: str
    measure: "Callable[[AlignedModel], dict[str, float]]"


class MethodConfig(BaseModel):
    """An alignment method: hyper-parameters come from a suite file, unknown keys are refused.

    ``uses_triples`` is False for methods without a fit on preference data: one result for every budget.
    ``single_pass`` is True for methods that pass every triple once, so that only fewer triples make them cheaper: with
    a bill for a budget they get as many as it is predicted to pay for. Any other method stops when
    ``meter.exhausted``. ``own_network`` is True for methods whose artifact has an adapter or weights of its own, which
    takes a base on one device. ``online`` names hyper-parameters that no fit reads: an artifact that differs in them
    alone is made by `adjust`, without one. ``trained_stages`` are the stages of its bill that pass backward, too.
    ``steers`` is True where the artifact has an intervention; ``diagnostics`` explains each figure that this reports of
    itself: name -> a sentence for the report's legend.
    """

    # Defaults too: 16 and 16.0 are one setting, wherever it comes from, and make one fingerprint.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    name: ClassVar[str]
    uses_triples: ClassVar[bool] = True
    single_pass: ClassVar[bool] = False
    online: ClassVar[frozenset[str]] = frozenset()
    trained_stages: ClassVar[frozenset[str]] = frozenset({"train"})
    own_network: ClassVar[bool] = False
    steers: ClassVar[bool] = False
    diagnostics: ClassVar[Mapping[str, str]] = {}

    @property
    def keeps_weights(self) -> bool:
        """Whether its artifact is sure to hold all weights of the model."""
        return False

    @property
    def texts_at_once(self) -> int:
        """How many texts a training step holds the activations of, at most; 0: nothing is trained, or they are computed
        again in the backward pass."""
        return 0

    @property
    def instructions(self) -> tuple[str, ...]:
        """What its artifact puts in front of prompts, which then have to fit the context with it."""
        return ()

    @property
    def fit_instructions(self) -> tuple[str, ...]:
        """What its fit puts in front of the triples' prompts."""
        return ()

    def check(self, base: BaseShape) -> None:
        """Raise ValueError, before any work, when the hyper-parameters or files do not fit the base model."""

    def check_processes(self, processes: int, *, sharded: bool = False) -> None:
        """Raise ValueError, before any work, when so many processes (two or more) cannot share a fit; ``sharded``, not
        with a part of the trained weights each."""

    def notes(self, base: BaseShape) -> Sequence[str]:
        """What is no reason for `check` to refuse the method, but a user has to know."""
        return ()

    def fit(self, base: "AlignedModel", triples: Sequence[Triple], *, meter: "Meter", seed: int) -> "AlignedModel":
        """Align ``base``, unchanged itself, on ``triples``; each forward and training step is billed to ``meter``."""
        raise NotImplementedError

    def adjust(self, fitted: "AlignedModel") -> "AlignedModel":
        """What `fit` would have given, from ``fitted``, the result of a method that differs in ``online`` alone.

        To be implemented where ``online`` names anything; equal to a fit of its own, fingerprint included.
        """
        raise NotImplementedError

    def predict(self, base: "AlignedModel", triples: Sequence[Triple], rates: "Rates") -> dict[str, int] | None:
        """FLOPs that `fit` is going to execute on ``triples``, by stage; None: no prediction.

        ``base`` has its tokenizer and chat format, and no weights. Also asked for triples that do not fit the context,
        for which it may raise the ValueError that `fit` would.
        """
        return None

    def preview(self, base: "AlignedModel", triples: Sequence[Triple], rates: "Rates") -> Preview | None:
        """What can be found out about ``triples`` before a fit, for `run --dry-run`; None: nothing.

        ``base`` and what may be raised are as in `predict`.
        """
        return None


AlignmentMethod = MethodConfig  # the published name
METHODS: Registry[MethodConfig] = Registry("method")
register_method = METHODS.register
