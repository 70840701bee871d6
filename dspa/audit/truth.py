"""Ground truth where there is one: in a world whose texts carry labels, what the latents stand for can be measured."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.audit.scan import Measurement, residual_batches
from dspa.audit.texts import NOT_COUNTED, text_of
from dspa.saes.sae import ResidualSAE
from harness.model.aligned import AlignedModel
from harness.truth import GroundTruth

SELECTIVE = 0.8  # share of a latent's firing in one label's answers that makes it that label's
MIN_TOKENS = 20  # a latent that fires on fewer tokens of these answers belongs to none


@dataclass(frozen=True, eq=False)
class Labels:
    """Which label each output latent stands for. ``owner[j]``: index into ``names``, -1 for none; ``spoken``: group ->
    its labels; ``selectivity[r, j]``: share of latent j's firing that is in label r's answers, in the groups where r
    occurs, against the mean of the other labels there."""

    names: tuple[str, ...]
    owner: Int[Tensor, " d_sae"]
    selectivity: Float[Tensor, "label d_sae"]
    spoken: Mapping[str, tuple[str, ...]]
    preferred: Mapping[str, str]
    leaning: Mapping[str, Float[Tensor, " d_sae"]]
    """Group -> share of each latent's firing there that is in answers of dispreferred labels, against the preferred one
    (0.5: it tells nothing); NaN where it is silent in the group."""

    def label_of(self, latent: int) -> str | None:
        """The label of one latent."""
        index = int(self.owner[latent])
        return None if index < 0 else self.names[index]

    def standing(self, group: str, latent: int) -> str:
        """``dispreferred``, ``preferred`` (what the latent stands for in this group), ``other`` (a label that does not
        occur there) or ``none``."""
        label = self.label_of(latent)
        if label is None:
            return "none"
        if label == self.preferred[group]:
            return "preferred"
        return "dispreferred" if label in self.spoken[group] else "other"


STANDINGS = ("dispreferred", "preferred", "other", "none")


def measure_labels(model: AlignedModel, truth: GroundTruth, sae: ResidualSAE, limit: float | None) -> Labels:
    """Read the labelled answers (teacher-forced, unsteered) and assign every latent that is selective enough.

    A latent's rate is the share of an answer group's tokens on which it fires. It belongs to label r when at least
    `SELECTIVE` of its firing is in r's answers, and it fires on `MIN_TOKENS` of them.
    """
    answers = truth.answers()
    cells = sorted({(a.group, a.label) for a in answers})
    texts = []
    for labelled in answers:
        kind = cells.index((labelled.group, labelled.label))
        parts = [(model.prompt_ids(labelled.prompt), NOT_COUNTED), (model.chat.response_ids(labelled.answer), kind)]
        texts.append(text_of(model, parts))
    measured = Measurement(sae, len(cells), limit)
    for batch in residual_batches(model, texts, {sae.layer}):
        measured.add(batch)
    names = tuple(sorted({label for _, label in cells}))
    rates = {cell: measured.density_by_kind[i] for i, cell in enumerate(cells)}
    spoken = {group: tuple(label for g, label in cells if g == group) for group, _ in cells}
    own, rival = _rates(rates, names, spoken)
    selectivity = own / (own + rival).clamp(min=1e-12)
    tokens = torch.stack(
        [sum(measured.active[i] for i, (_, label) in enumerate(cells) if label == name) for name in names]  # type: ignore[misc]
    )
    # A latent that speaks for one label in one group and for another elsewhere goes to where it fires more.
    strength = own.masked_fill((selectivity < SELECTIVE) | (tokens < MIN_TOKENS), 0.0)
    best = strength.max(0)
    owner = torch.where(best.values > 0, best.indices, -1)
    leaning = {}
    for group, labels in spoken.items():
        wanted = rates[group, truth.preferred[group]]
        unwanted = torch.stack([rates[group, label] for label in labels if label != truth.preferred[group]]).mean(0)
        leaning[group] = unwanted / (unwanted + wanted)
    return Labels(names, owner, selectivity, spoken, dict(truth.preferred), leaning)


def _rates(
    rates: Mapping[tuple[str, str], Float[Tensor, " d_sae"]],
    names: tuple[str, ...],
    spoken: Mapping[str, tuple[str, ...]],
) -> tuple[Float[Tensor, "label d_sae"], Float[Tensor, "label d_sae"]]:
    """Each label's rate, and the mean rate of the labels beside it, summed over the groups in which it occurs."""
    own, rival = [], []
    for name in names:
        groups = [group for group, labels in spoken.items() if name in labels]
        own.append(torch.stack([rates[group, name] for group in groups]).sum(0))
        others = [
            torch.stack([rates[group, label] for label in spoken[group] if label != name]).mean(0) for group in groups
        ]
        rival.append(torch.stack(others).sum(0))
    return torch.stack(own), torch.stack(rival)
