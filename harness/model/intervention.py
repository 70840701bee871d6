"""What an inference-time edit of the residual stream is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.data.triples import Triple
from harness.plugins import Registry

Positions = Literal["generation", "all"]
Condition = Literal["conversation", "last_turn"]
"""What of a prompt an intervention is conditioned on: all its tokens, or those of the last user turn."""
Residual = Float[Tensor, "batch pos d_model"]
Mask = Bool[Tensor, "batch pos"]
RowState = dict[str, Tensor]
"""What an intervention remembers of each row's prompt: tensors whose first dimension is the batch. It belongs to the
rows: reordered with them, and an intervention may update it in place."""


@runtime_checkable
class Tally(Protocol):
    """What one steering session counts: each intervention that has figures has a class of its own for it."""

    def read(self) -> dict[str, Any]:
        """The counts as JSON (ints, floats, lists), all that `Intervention.figures` needs; waits for the device."""
        ...


class Sums:
    """A tally of named sums. Adding to them never waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add scalar tensors to the sums of their names."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def read(self) -> dict[str, Any]:
        """Name -> sum; only names that were added to."""
        return {name: value.item() for name, value in self._sums.items()}


@runtime_checkable
class Intervention(Protocol):
    """Adds a delta to the residual stream (output of decoder layers ``write_layers``) at steered positions.

    ``name`` is what it is registered as. ``read_layers`` are the layers whose residual over the prompt ``condition``
    needs; all of them must be at or before the first write layer, so that the last prompt token can be steered in the
    same forward pass. It may have an attribute ``condition_on`` (`Condition`): which tokens of the prompt ``condition``
    gets; without one it gets all of the conversation.

    An intervention never changes: what is counted while it steers goes to the ``tally`` of the steering session, an
    object that its own `tally` made.
    """

    name: ClassVar[str]

    @property
    def positions(self) -> Positions: ...

    @property
    def read_layers(self) -> tuple[int, ...]: ...

    @property
    def write_layers(self) -> tuple[int, ...]: ...

    def condition(self, residual: Mapping[int, Residual], prompt: Mask, *, tally: Any = None) -> RowState:
        """State of each row from the residual stream over its prompt (BOS, EOS and pad are not in ``prompt``, and with
        "last_turn" only the last user turn is; a row may then have no tokens at all).

        What was selected is noted in ``tally``; None: nobody counts.
        """
        ...

    def delta(
        self, layer: int, residual: Residual, state: RowState, steered: Mask, *, tally: Any = None
    ) -> Residual | None:
        """What to add to the residual stream: exactly zero where not ``steered`` or where nothing is to be edited.

        ``state`` has the rows of ``residual``. None stands for zero everywhere. Called at every decode step (pos = 1),
        so on an accelerator neither it nor the ``tally`` may wait for the device.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What safetensors keeps of it."""
        ...

    def params(self) -> dict[str, Any]:
        """What aligned.json keeps of it (JSON)."""
        ...

    def identity(self) -> dict[str, Any]:
        """What of it, beside ``tensors``, decides the outputs: settings, and files by their content (JSON)."""
        ...

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], params: dict[str, Any], device: str) -> "Intervention":
        """Inverse of ``tensors`` and ``params``."""
        ...

    def to(self, device: torch.device | str) -> "Intervention":
        """The same on another device."""
        ...

    def tally(self) -> Tally | None:
        """An empty tally for one steering session; None where there is nothing to count."""
        ...

    def figures(self, tallies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Figures of what was selected and edited, from what the sessions' tallies read, in the order of the sessions.

        Without tallies only what the fit itself found out. The method declares a sentence for each figure
        (`MethodConfig.diagnostics`).
        """
        ...


@dataclass(frozen=True, eq=False)
class LatentEdits:
    """Edits of latents of an SAE: the ``latents`` of each row that may be edited (-1: none), their activations, and
    what is added to these."""

    latents: Int[Tensor, "batch k"]
    before: Float[Tensor, "batch pos k"]
    change: Float[Tensor, "batch pos k"]


@runtime_checkable
class EditsLatents(Protocol):
    """What an intervention that edits latents of an SAE has beside the rest, so that its edits can be traced and read
    (`harness.model.trace`)."""

    @property
    def d_sae(self) -> int:
        """Latents of the SAE."""
        ...

    def edits(self, layer: int, residual: Residual, state: RowState, steered: Mask) -> LatentEdits:
        """The edits that `Intervention.delta` makes of the same."""
        ...

    def snippets(
        self, model: Any, triples: Sequence[Triple], latents: Sequence[int], count: int
    ) -> dict[int, list[dict[str, Any]]]:
        """Latent -> the ``count`` passages of ``triples`` on which it fires most, strongest first: text with the active
        tokens in [[ ]], strongest token, activation, and kind (prompt, chosen or rejected).

        ``model`` is the `AlignedModel` that is steered; ValueError for a triple that does not fit its context.
        """
        ...


_Class = TypeVar("_Class", bound=type)
INTERVENTIONS: Registry[Intervention] = Registry("intervention")


def register_intervention(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: artifacts that hold this intervention come back as this class."""
    return INTERVENTIONS.register(name)  # type: ignore[return-value]
