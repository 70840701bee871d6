"""The audit of a DSPA artifact (arXiv 2603.21461): everything measured, before anything is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.audit.coverage import Coverage, measure_coverage
from dspa.audit.explain import Endpoint, Explanation, category_counts, explain
from dspa.audit.prompts import Conditionality, measure_conditionality
from dspa.audit.ranking import SETS, Ranking, rank_latents
from dspa.audit.scan import Measurement, residual_batches
from dspa.audit.snippets import Snippet, SnippetCollector
from dspa.audit.texts import KINDS, Corpus
from dspa.audit.truth import Labels, measure_labels
from dspa.saes.sae import ResidualSAE
from dspa.steering import DSPASteering
from harness.model.aligned import AlignedModel
from harness.truth import GroundTruth

MOST_EDITED = 20  # latents listed by number of edits
_ALL = "all prompts"


@dataclass(frozen=True)
class AuditSettings:
    """``top``: latents in each audited set; ``snippets`` a latent; ``examples``: prompts shown in full; ``generate``:
    prompts answered for coverage, with ``max_new_tokens`` each."""

    top: int = 50
    snippets: int = 8
    examples: int = 4
    generate: int = 32
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.top, self.snippets, self.max_new_tokens) < 1 or min(self.examples, self.generate) < 0:
            raise ValueError("top, snippets and max_new_tokens must be at least 1, examples and generate at least 0")


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found. ``coverage``: group of prompts -> its edits (one group where there is no ground truth)."""

    model: AlignedModel
    settings: AuditSettings
    corpus: Corpus
    saes: dict[str, Measurement]
    column_sums: Float[Tensor, " d_sae"]
    ranking: Ranking
    conditionality: Conditionality | None
    coverage: Mapping[str, Coverage]
    snippets: Mapping[int, Sequence[Snippet]]
    gate_snippets: Mapping[int, Sequence[Snippet]]
    explanations: Mapping[int, Explanation] | None
    judge_tokens: int
    truth: GroundTruth | None
    labels: Labels | None

    @property
    def steering(self) -> DSPASteering:
        assert isinstance(self.model.intervention, DSPASteering)
        return self.model.intervention

    @property
    def output(self) -> Measurement:
        return self.saes["output"]

    @property
    def edited(self) -> Coverage | None:
        """Coverage over all groups; None when nothing was generated."""
        parts = list(self.coverage.values())
        return None if not parts else sum(parts[1:], parts[0])

    @property
    def categories(self) -> dict[str, dict[str, int]] | None:
        """Category -> set -> count; None without a judge."""
        if self.explanations is None:
            return None
        return category_counts(self.explanations, {name: self.ranking.members(name) for name in SETS})

    @property
    def unjudged(self) -> int:
        """Latents that were shown to the judge and have no explanation or no category."""
        return sum(e.error is not None and bool(self.snippets[i]) for i, e in (self.explanations or {}).items())

    def selected_share(self, latent: int) -> float:
        """Share of the prompts for which a latent is selected."""
        assert self.conditionality is not None
        sets = zip(self.conditionality.ablated, self.conditionality.augmented, strict=True)
        return sum(latent in a or latent in b for a, b in sets) / len(self.corpus.prompts)

    def most_edited(self) -> list[int]:
        """The latents with the most edits, at most `MOST_EDITED` of them."""
        return [] if self.edited is None else _most_edited(self.edited.edits)


def audit(
    model: AlignedModel,
    corpus: Corpus,
    settings: AuditSettings,
    *,
    endpoint: Endpoint | None = None,
    truth: GroundTruth | None = None,
    progress: Callable[[str], object] = lambda stage: None,
) -> Audit:
    """Measure a loaded DSPA artifact on ``corpus``; ``progress`` is told of each stage.

    Raises ValueError for another method's artifact and for texts without a single counted token.
    """
    steering = model.intervention
    if not isinstance(steering, DSPASteering):
        raise ValueError(f"only DSPA artifacts can be audited, this one is of method {model.method!r}")
    saes: dict[str, ResidualSAE] = dict(zip(("input", "output"), steering.saes, strict=True))
    limits: dict[str, float | None] = dict(zip(saes, steering.settings.norm_limits, strict=True))
    layers = {sae.layer for sae in saes.values()}

    progress("densities")
    measured = {role: Measurement(sae, len(KINDS), limits[role]) for role, sae in saes.items()}
    for batch in residual_batches(model, corpus.texts, layers):
        for one in measured.values():
            one.add(batch)
    if not int(measured["output"].tokens.sum()):
        raise ValueError("the texts have no token that counts (only special ones); give other texts")
    sums = steering.condition_map.column_sums.cpu()
    ranking = rank_latents(sums, measured["output"].density > 0, settings.top, settings.seed)

    conditionality = None
    if corpus.prompts:
        progress("prompts")
        conditionality = measure_conditionality(model, corpus.prompts, examples=settings.examples, seed=settings.seed)
    progress("answers")
    coverage = _coverage(model, corpus, settings, truth)
    edits = sum((one.edits for one in coverage.values()), torch.zeros(len(sums), dtype=torch.long))

    progress("snippets")
    examples = conditionality.examples if conditionality else ()
    wanted = [*ranking.all, *_most_edited(edits), *(s.latent for e in examples for s in e.selected)]
    gates = sorted({gate.latent for e in examples for gate in e.gates})
    found = _snippets(model, corpus, settings.snippets, saes, limits, {"output": wanted, "input": gates})

    explanations, spent = None, 0
    if endpoint is not None:
        progress("explanations")
        explanations, spent = explain(endpoint, {i: found["output"][i] for i in ranking.all})
    labels = None
    if truth is not None:
        progress("ground truth")
        labels = measure_labels(model, truth, saes["output"], limits["output"])
    return Audit(
        model, settings, corpus, measured, sums, ranking, conditionality, coverage, found["output"], found["input"],
        explanations, spent, truth, labels,
    )  # fmt: skip


def _coverage(
    model: AlignedModel, corpus: Corpus, settings: AuditSettings, truth: GroundTruth | None
) -> dict[str, Coverage]:
    """Answers to some prompts, group by group where the ground truth knows groups."""
    count = min(settings.generate, len(corpus.prompts))
    groups: dict[str, list] = {}
    for prompt in Random(settings.seed).sample(corpus.prompts, count):
        group = _ALL if truth is None else truth.group(prompt) or "other prompts"
        groups.setdefault(group, []).append(prompt)
    return {
        group: measure_coverage(model, prompts, max_new_tokens=settings.max_new_tokens)
        for group, prompts in sorted(groups.items())
    }


def _snippets(
    model: AlignedModel,
    corpus: Corpus,
    count: int,
    saes: Mapping[str, ResidualSAE],
    limits: Mapping[str, float | None],
    wanted: Mapping[str, Sequence[int]],
) -> dict[str, dict[int, list[Snippet]]]:
    collectors = {
        role: SnippetCollector(saes[role], sorted(set(latents)), count, limits[role])
        for role, latents in wanted.items()
    }
    for batch in residual_batches(model, corpus.texts, {sae.layer for sae in saes.values()}):
        for collector in collectors.values():
            collector.add(batch)
    return {role: one.snippets(corpus.texts, model.tokenizer) for role, one in collectors.items()}


def _most_edited(edits: Int[Tensor, " d_sae"]) -> list[int]:
    ordered = edits.sort(descending=True, stable=True)
    return ordered.indices[:MOST_EDITED][ordered.values[:MOST_EDITED] > 0].tolist()
