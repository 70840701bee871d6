"""Coverage: which latents were really edited while the artifact answered, and how often."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Int
from torch import Tensor

from dspa.diagnostics import edit_counts
from dspa.steering import DSPASteering
from harness.data.triples import Conversation
from harness.model.aligned import AlignedModel


@dataclass(frozen=True, eq=False)
class Coverage:
    """What happened while ``prompts`` prompts were answered with ``tokens`` tokens. ``tallies``: what DSPA's steering
    sessions counted; ``skipped``: why prompts were left out."""

    d_sae: int
    prompts: int
    tokens: int
    tallies: tuple[dict[str, Any], ...]
    skipped: tuple[str, ...] = ()

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(
            self.d_sae,
            self.prompts + other.prompts,
            self.tokens + other.tokens,
            self.tallies + other.tallies,
            self.skipped + other.skipped,
        )

    @cached_property
    def edits(self) -> Int[Tensor, " d_sae"]:
        """How often each output latent was edited."""
        return edit_counts(self.tallies, self.d_sae)

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
    batches = list(model.generate_batches(prompts, max_new_tokens=max_new_tokens, batch_size=16))
    completions = [completion for batch in batches for completion in batch.completions]
    answered = [c for c in completions if c.error is None]
    return Coverage(
        d_sae=steering.condition_map.d_sae,
        prompts=len(answered),
        tokens=sum(c.steered_tokens for c in answered),
        tallies=tuple(batch.tally for batch in batches if batch.tally is not None),
        skipped=tuple(c.error for c in completions if c.error is not None),
    )
