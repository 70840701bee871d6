"""A model of which there are only the answers it gave: enough for another judge, and nothing is loaded for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.data.triples import Conversation
from harness.responder import Completion

if TYPE_CHECKING:
    from harness.model.generation import Batch

MISSING = "the run that is judged again has no answer to this"


@dataclass(frozen=True)
class _Counted:
    """In an intervention's place: what it said of itself when the answers were made."""

    diagnostics: Mapping[str, float]

    def figures(self, _: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return dict(self.diagnostics)


@dataclass(frozen=True, eq=False)
class Kept:
    """What `harness.experiment.answering.Answering` needs of an `AlignedModel` all of whose answers are stored.

    ``base`` is the base model's fingerprint, ``diagnostics`` are those kept of the benchmark. Every answer that is not
    in the store is a `Completion` with an error; anything that takes a network raises ValueError.
    """

    method: str
    fingerprint: str
    base: str
    diagnostics: Mapping[str, float]

    @property
    def intervention(self) -> _Counted:
        return _Counted(self.diagnostics)

    def unaligned(self) -> "Kept":
        """The base model, of which there are answers where a benchmark compares with it."""
        return Kept("base", self.base, self.base, {})

    def generate_batches(self, conversations: Sequence[Conversation], **_: Any) -> Iterator["Batch"]:
        """One batch of errors."""
        from harness.model.generation import Batch

        lost = Completion("", (), 0, 0, finished=False, error=MISSING)
        yield Batch(tuple(range(len(conversations))), (lost,) * len(conversations), None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(f"judging again loads no model, and this benchmark asks for its {name!r}; run the suite anew")
