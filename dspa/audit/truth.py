"""Ground truth where there is one: in a world whose texts carry labels, what the latents stand for can be measured."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dspa.audit.prompts import Conditionality, Coverage
from dspa.audit.scan import NOT_COUNTED, Measurement, residual_batches, text_of
from harness.data.triples import Conversation
from harness.model.aligned import AlignedModel
from harness.truth import GroundTruth

SELECTIVE = 0.8  # share of a latent's firing in one label's answers that makes it that label's
MIN_TOKENS = 20  # a latent that fires on fewer tokens of these answers belongs to none
SIDES = ("dispreferred", "preferred", "other", "none")


@dataclass(frozen=True, eq=False)
class Labels:
    """Which label each output latent stands for. ``owner[j]``: index into ``names``, -1 for none; ``spoken``: group ->
    its labels; ``preferred``: group -> the one that its preference data favour."""

    names: tuple[str, ...]
    owner: Int[Tensor, " d_sae"]
    spoken: Mapping[str, tuple[str, ...]]
    preferred: Mapping[str, str]
    leaning: Mapping[str, Float[Tensor, " d_sae"]]
    """Group -> share of each latent's firing there that is in answers of dispreferred labels, against the preferred one
    (0.5: it tells nothing); NaN where it is silent in the group."""
    tokens: Mapping[str, Float[Tensor, " d_sae"]]
    """Group -> tokens of its answers on which each latent fires."""

    def owned(self, group: str, side: str) -> Bool[Tensor, " d_sae"]:
        """Which latents are the ``preferred`` or the ``dispreferred`` labels' within one group: by their leaning there,
        whatever they do in other groups."""
        leaning = self.leaning[group] if side == "dispreferred" else 1 - self.leaning[group]
        return (leaning >= SELECTIVE) & (self.tokens[group] >= MIN_TOKENS)

    def label_of(self, latent: int) -> str | None:
        """The label of one latent."""
        index = int(self.owner[latent])
        return None if index < 0 else self.names[index]

    def side(self, group: str, latent: int) -> str:
        """One of `SIDES`: what the latent's label is in this group; ``other``: it does not occur there."""
        label = self.label_of(latent)
        if label is None:
            return "none"
        if label == self.preferred[group]:
            return "preferred"
        return "dispreferred" if label in self.spoken[group] else "other"


def measure_labels(model: AlignedModel, truth: GroundTruth, output: Measurement) -> Labels:
    """Read the labelled answers (teacher-forced, unsteered) and assign every latent of ``output``'s SAE that is
    selective enough.

    A latent's rate is the share of an answer group's tokens on which it fires. It belongs to label r when at least
    `SELECTIVE` of its firing is in r's answers, in the groups where r occurs, against the mean of the other labels
    there, and it fires on `MIN_TOKENS` of them.
    """
    answers = truth.answers()
    cells = sorted({(a.group, a.label) for a in answers})
    texts = []
    for labelled in answers:
        kind = cells.index((labelled.group, labelled.label))
        parts = [(model.prompt_ids(labelled.prompt), NOT_COUNTED), (model.chat.response_ids(labelled.answer), kind)]
        texts.append(text_of(model, parts))
    measured = Measurement(output.sae, len(cells), output.limit)
    for batch in residual_batches(model, texts, {output.sae.layer}):
        measured.add(batch)
    rates = dict(zip(cells, measured.density_by_kind, strict=True))
    spoken = {group: tuple(label for g, label in cells if g == group) for group, _ in cells}

    def rate_of_others(group: str, label: str) -> Tensor:
        return torch.stack([rates[group, other] for other in spoken[group] if other != label]).mean(0)

    names = tuple(sorted({label for _, label in cells}))
    own, rival, tokens = [], [], []
    for name in names:
        groups = [group for group, labels in spoken.items() if name in labels]
        own.append(torch.stack([rates[group, name] for group in groups]).sum(0))
        rival.append(torch.stack([rate_of_others(group, name) for group in groups]).sum(0))
        tokens.append(measured.active[[label == name for _, label in cells]].sum(0))
    rate = torch.stack(own)
    selectivity = rate / (rate + torch.stack(rival)).clamp(min=1e-12)
    # A latent that speaks for one label in one group and for another elsewhere goes to where it fires more.
    best = rate.masked_fill((selectivity < SELECTIVE) | (torch.stack(tokens) < MIN_TOKENS), 0.0).max(0)
    leaning, fires = {}, {}
    for group in spoken:
        fires[group] = measured.active[[g == group for g, _ in cells]].sum(0).float()
        unwanted = rate_of_others(group, truth.preferred[group])
        leaning[group] = unwanted / (unwanted + rates[group, truth.preferred[group]])
    return Labels(names, torch.where(best.values > 0, best.indices, -1), spoken, dict(truth.preferred), leaning, fires)


def count_by_label(
    labels: Labels,
    truth: GroundTruth,
    prompts: Sequence[Conversation],
    live: Bool[Tensor, " d_sae"],
    ranking: Mapping[str, Sequence[int]],
    conditionality: Conditionality | None,
    coverage: Mapping[str, Coverage],
) -> dict[str, Any]:
    """``labels``: latents per label among all live ones and in each audited set; ``prompts``: for each group, by side,
    the latents selected for its prompts, the edits made on them, and the live latents as a base rate, with their mean
    ``leaning`` (see `Labels`) and how many are ``silent``."""
    fire = live.nonzero()[:, 0].tolist()
    groups: dict[str | None, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(truth.group(prompt), []).append(index)
    found = {}
    for group, preferred in labels.preferred.items():
        if group not in groups:
            continue
        assert conditionality is not None
        rows, edits = groups[group], coverage[group].edits.tolist() if group in coverage else []
        found[group] = {
            "preferred": preferred,
            "dispreferred": [name for name in labels.spoken[group] if name != preferred],
            "prompts": len(rows),
            "live": _counts(labels, group, Counter(fire)),
            "ablated": _counts(labels, group, Counter(i for row in rows for i in conditionality.ablated[row])),
            "augmented": _counts(labels, group, Counter(i for row in rows for i in conditionality.augmented[row])),
            "edits": _counts(labels, group, {latent: count for latent, count in enumerate(edits) if count}),
        }
    sets = {"live": fire, **ranking}
    by_set = {name: dict(Counter(labels.label_of(i) or "none" for i in members)) for name, members in sets.items()}
    return {"labels": by_set, "prompts": found}


def _counts(labels: Labels, group: str, times: Mapping[int, int]) -> dict[str, int | float]:
    """Latents (each as many ``times`` as it occurs) by side, and how they lean on average."""
    found: dict[str, int | float] = dict.fromkeys((*SIDES, "silent"), 0)
    leaning, weight = 0.0, 0
    for latent, count in times.items():
        found[labels.side(group, latent)] += count
        lean = float(labels.leaning[group][latent])
        if math.isnan(lean):
            found["silent"] += count
        else:
            leaning, weight = leaning + count * lean, weight + count
    return found | {"leaning": leaning / weight if weight else math.nan}
