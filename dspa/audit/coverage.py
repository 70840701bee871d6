"""Coverage: which latents were really edited while the artifact answered, and how often."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from dspa.steer import DSPASteering
from harness.model import AlignedModel
from harness.preferences import Conversation


@dataclass(frozen=True, eq=False)
class Coverage:
    """``edits``: how often each output latent was edited while ``prompts`` prompts were answered with ``tokens``
    tokens; ``skipped``: why prompts were left out."""

    prompts: int
    tokens: int
    edits: Int[Tensor, " d_sae"]
    skipped: tuple[str, ...] = ()

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(
            self.prompts + other.prompts,
            self.tokens + other.tokens,
            self.edits + other.edits,
            self.skipped + other.skipped,
        )

    @property
    def total(self) -> int:
        """Edits of all latents together."""
        return int(self.edits.sum())

    def share(self, latents: Iterable[int]) -> float:
        """Share of all edits that fell on ``latents``; NaN when nothing was edited."""
        return int(self.edits[list(latents)].sum()) / self.total if self.total else float("nan")


def measure_coverage(model: AlignedModel, prompts: Sequence[Conversation], *, max_new_tokens: int) -> Coverage:
    """Answer the prompts greedily and count the edits of each latent."""
    steering = model.intervention
    assert isinstance(steering, DSPASteering)
    before = steering.edit_counts.clone()
    completions = model.generate(prompts, max_new_tokens=max_new_tokens, batch_size=16)
    answered = [c for c in completions if c.error is None]
    return Coverage(
        prompts=len(answered),
        tokens=sum(c.steered_tokens for c in answered),
        edits=(steering.edit_counts - before).cpu(),
        skipped=tuple(c.error for c in completions if c.error is not None),
    )
