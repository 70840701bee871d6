"""What the artifact does with prompts: which latents it selects for them, and which it edits while it answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dspa.audit.scan import NOT_COUNTED, residual_batches, text_of
from dspa.diagnostics import SelectionTally, edit_counts
from dspa.steering import DSPASteering, Selection
from harness.data.triples import Conversation
from harness.model.aligned import AlignedModel
from harness.model.turns import narrowed

MOST_EDITED = 20  # latents listed by number of edits


@dataclass(frozen=True)
class Selected:
    """One selected output latent: its score s_j(x), the 95 % bootstrap interval of it where the artifact can give one
    (None otherwise), and whether it is ablated (else augmented)."""

    latent: int
    ablated: bool
    score: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Gate:
    """One input latent of the prompt that selected rows of the map: its density, and N_i, the support of its row."""

    latent: int
    density: float
    support: int


@dataclass(frozen=True)
class Example:
    """Everything that was decided for one prompt."""

    prompt: Conversation
    gates: tuple[Gate, ...]
    selected: tuple[Selected, ...]


@dataclass(frozen=True)
class Conditionality:
    """What was selected for the prompts. ``figures``: the artifact's own diagnostics; ``ablated`` and ``augmented``:
    the sets of each prompt, in order; ``supports``: N_i of every selected gate of every prompt (rows only)."""

    figures: dict[str, float]
    ablated: list[frozenset[int]]
    augmented: list[frozenset[int]]
    supports: list[int]
    examples: list[Example]

    def share(self, latent: int) -> float:
        """Share of the prompts for which a latent is selected."""
        sets = zip(self.ablated, self.augmented, strict=True)
        return sum(latent in a or latent in b for a, b in sets) / len(self.ablated)


@torch.no_grad()
def measure_conditionality(
    model: AlignedModel, prompts: Sequence[Conversation], *, examples: int, seed: int
) -> Conditionality:
    """Condition the artifact's own steering on every prompt (nothing is generated); ``examples`` of them, drawn by
    ``seed``, are kept in full."""
    steering = model.intervention
    assert isinstance(steering, DSPASteering)
    shown = set(Random(seed).sample(range(len(prompts)), min(examples, len(prompts))))
    layer = steering.read_layers[0]
    texts = [text_of(model, [(model.prompt_ids(prompt), 0)]) for prompt in prompts]
    ablated, augmented = [[frozenset[int]()] * len(prompts) for _ in range(2)]
    supports: list[int] = []
    full: dict[int, Example] = {}
    tally = SelectionTally(steering.condition_map)
    for batch in residual_batches(model, texts, {layer}):
        counted = batch.kind != NOT_COUNTED
        if steering.condition_on == "last_turn":
            lengths = torch.tensor(batch.lengths, device=batch.ids.device)
            whole = torch.arange(batch.ids.shape[1], device=lengths.device) < lengths[:, None]
            counted &= narrowed(whole, batch.ids, model.chat.last_turn)
        selection = steering.select(batch.residual[layer], counted)
        tally.selected(selection.gates, selection.latents, selection.scores)
        if (support := steering.condition_map.support) is not None:
            supports += support[selection.gates[selection.gates >= 0]].tolist()
        for position, row in enumerate(batch.rows):
            latents, sign = selection.latents[position], selection.sign[position]
            ablated[row] = frozenset(latents[sign < 0].tolist())
            augmented[row] = frozenset(latents[sign > 0].tolist())
            if row in shown:
                full[row] = _example(steering, prompts[row], selection, position)
    figures = steering.figures([tally.read()])
    return Conditionality(figures, ablated, augmented, supports, [full[row] for row in sorted(full)])


def _example(steering: DSPASteering, prompt: Conversation, selection: Selection, row: int) -> Example:
    gates, latents = selection.gates[row : row + 1], selection.latents[row : row + 1]
    interval = steering.condition_map.interval(gates, latents.clamp(min=0))
    support, density = steering.condition_map.support, selection.density[row]
    selected = []
    for k, latent in enumerate(latents[0].tolist()):
        if latent >= 0:
            ends = None if interval is None else (float(interval[0][0, k]), float(interval[1][0, k]))
            ablated, score = float(selection.sign[row, k]) < 0, float(selection.scores[row, latent])
            selected.append(Selected(latent, ablated, score, ends))
    shown = (
        [] if support is None else [Gate(i, float(density[i]), int(support[i])) for i in gates[0].tolist() if i >= 0]
    )
    return Example(prompt, tuple(shown), tuple(selected))


@dataclass(frozen=True, eq=False)
class Coverage:
    """What happened while ``prompts`` prompts were answered with ``tokens`` tokens. ``edits``: how often each output
    latent was edited; ``tallies``: what DSPA's steering sessions counted; ``skipped``: why prompts were left out."""

    prompts: int
    tokens: int
    edits: Int[Tensor, " d_sae"]
    tallies: tuple[dict[str, Any], ...]
    skipped: tuple[str, ...]

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def total(self) -> int:
        """Edits of all latents together."""
        return int(self.edits.sum())

    def share(self, latents: Iterable[int]) -> float:
        """Share of all edits that fell on ``latents``; NaN when nothing was edited."""
        return int(self.edits[list(latents)].sum()) / self.total if self.total else float("nan")

    def most_edited(self) -> list[int]:
        """The latents with the most edits, at most `MOST_EDITED` of them."""
        ordered = self.edits.sort(descending=True, stable=True)
        return ordered.indices[:MOST_EDITED][ordered.values[:MOST_EDITED] > 0].tolist()


def measure_coverage(model: AlignedModel, prompts: Sequence[Conversation], *, max_new_tokens: int) -> Coverage:
    """Answer the prompts greedily and count the edits of each latent."""
    steering = model.intervention
    assert isinstance(steering, DSPASteering)
    batches = list(model.generate_batches(prompts, max_new_tokens=max_new_tokens, batch_size=16))
    completions = [completion for batch in batches for completion in batch.completions]
    answered = [c for c in completions if c.error is None]
    tallies = tuple(batch.tally for batch in batches if batch.tally is not None)
    skipped = tuple(c.error for c in completions if c.error is not None)
    tokens, edits = sum(c.steered_tokens for c in answered), edit_counts(tallies, steering.condition_map.d_sae)
    return Coverage(len(answered), tokens, edits, tallies, skipped)
