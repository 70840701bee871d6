"""What the artifact selects for prompts: how conditional the sets are, and a few prompts in full."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from dspa.audit.scan import residual_batches
from dspa.audit.texts import NOT_COUNTED, text_of
from dspa.diagnostics import SelectionTally
from dspa.steering import DSPASteering, Selection
from harness.data.triples import Conversation
from harness.model.aligned import AlignedModel


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
    the sets of each prompt, in order; ``supports``: N_i of every selected gate of every prompt."""

    figures: dict[str, float]
    ablated: tuple[frozenset[int], ...]
    augmented: tuple[frozenset[int], ...]
    supports: tuple[int, ...]
    examples: tuple[Example, ...]


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
    ablated: dict[int, frozenset[int]] = {}
    augmented: dict[int, frozenset[int]] = {}
    supports: list[int] = []
    full: dict[int, Example] = {}
    tally = SelectionTally(steering.condition_map)
    for batch in residual_batches(model, texts, {layer}):
        selection = steering.select(batch.residual[layer], batch.kind != NOT_COUNTED)
        tally.selected(selection.gates, selection.latents, selection.scores)
        supports += steering.condition_map.support[selection.gates[selection.gates >= 0]].tolist()
        for position, row in enumerate(batch.rows):
            latents, sign = selection.latents[position], selection.sign[position]
            ablated[row] = frozenset(latents[sign < 0].tolist())
            augmented[row] = frozenset(latents[sign > 0].tolist())
            if row in shown:
                full[row] = _example(steering, prompts[row], selection, position)
    order = range(len(prompts))
    return Conditionality(
        figures=steering.figures([tally.read()]),
        ablated=tuple(ablated[i] for i in order),
        augmented=tuple(augmented[i] for i in order),
        supports=tuple(supports),
        examples=tuple(full[i] for i in sorted(full)),
    )


def _example(steering: DSPASteering, prompt: Conversation, selection: Selection, row: int) -> Example:
    gates, latents = selection.gates[row : row + 1], selection.latents[row : row + 1]
    interval = steering.condition_map.interval(gates, latents.clamp(min=0))
    support = steering.condition_map.support
    return Example(
        prompt,
        tuple(Gate(i, float(selection.density[row, i]), int(support[i])) for i in gates[0].tolist() if i >= 0),
        tuple(
            Selected(
                latent,
                float(selection.sign[row, k]) < 0,
                float(selection.scores[row, latent]),
                None if interval is None else (float(interval[0][0, k]), float(interval[1][0, k])),
            )
            for k, latent in enumerate(latents[0].tolist())
            if latent >= 0
        ),
    )
