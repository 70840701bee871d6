"""The audit of a DSPA artifact (arXiv 2603.21461): everything measured, before anything is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dspa.audit.causal import CausalCheck, CausalSettings, causal_check
from dspa.audit.causal_page import latent_data
from dspa.audit.explain import Ask, Explanation, category_counts, explain
from dspa.audit.prompts import Conditionality, Coverage, measure_conditionality, measure_coverage
from dspa.audit.recovery import Recovery, recover
from dspa.audit.scan import KINDS, Corpus, Measurement, residual_batches
from dspa.audit.snippets import Snippet, SnippetCollector, top_tokens
from dspa.audit.truth import Labels, count_by_label, measure_labels
from dspa.steering import DSPASteering
from harness.data.triples import Triple
from harness.model.aligned import AlignedModel
from harness.truth import GroundTruth

SETS = ("ablate", "augment", "random")


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
    """What was found. ``ranking``: set -> its latents by rank; ``edited``: None when nothing was generated; with a
    ground truth ``by_label`` counts latents per set (``labels``) and by side per group of prompts (``prompts``)."""

    model: AlignedModel
    settings: AuditSettings
    corpus: Corpus
    saes: dict[str, Measurement]
    ranking: Mapping[str, Sequence[int]]
    conditionality: Conditionality | None
    edited: Coverage | None
    snippets: Mapping[int, Sequence[Snippet]]
    gate_snippets: Mapping[int, Sequence[Snippet]]
    explanations: Mapping[int, Explanation] | None
    judge_tokens: int
    truth: GroundTruth | None
    labels: Labels | None
    by_label: dict[str, Any] | None
    causal: CausalCheck | None
    recovered: Mapping[str, Recovery] | None
    """Of the causal check with a ground truth: group of prompts -> what it finds."""

    @property
    def steering(self) -> DSPASteering:
        assert isinstance(self.model.intervention, DSPASteering)
        return self.model.intervention

    @property
    def output(self) -> Measurement:
        return self.saes["output"]

    @property
    def categories(self) -> dict[str, dict[str, int]] | None:
        """Category -> set -> count; None without a judge."""
        return None if self.explanations is None else category_counts(self.explanations, self.ranking)

    @property
    def unjudged(self) -> int:
        """Latents that were shown to the judge and have no explanation or no category."""
        return sum(e.error is not None and bool(self.snippets[i]) for i, e in (self.explanations or {}).items())

    @cached_property
    def records(self) -> dict[int, dict[str, Any]]:
        """Latent -> everything about it (JSON): the audited, the most edited and those of the prompts in full."""
        sums, density = self.steering.condition_map.column_sums.tolist(), self.output.density.tolist()
        kinds = zip(KINDS, self.output.density_by_kind.tolist(), self.output.tokens.tolist(), strict=True)
        by_kind = [(kind, shares) for kind, shares, tokens in kinds if tokens]
        neuronpedia = getattr(self.output.sae.sae.cfg.metadata, "neuronpedia_id", None)
        effects = {} if self.causal is None else self.causal.effect_of
        found = {}
        for latent, snippets in self.snippets.items():
            explained = None if self.explanations is None else self.explanations.get(latent)
            found[latent] = {
                "feature": latent,
                "sets": [name for name, members in self.ranking.items() if latent in members],
                "column_sum": sums[latent],
                "density": density[latent],
                "density_by_kind": {kind: shares[latent] for kind, shares in by_kind},
                "selected_share": None if self.conditionality is None else self.conditionality.share(latent),
                "edits": None if self.edited is None else int(self.edited.edits[latent]),
                "label": None if self.labels is None else self.labels.label_of(latent),
                "causal": latent_data(effects[latent]) if latent in effects else None,
                "top_tokens": top_tokens(snippets),
                "explanation": None if explained is None else asdict(explained),
                "url": f"https://www.neuronpedia.org/{neuronpedia}/{latent}" if neuronpedia else None,
                "snippets": [asdict(snippet) for snippet in snippets],
            }
        return found


def audit(
    model: AlignedModel,
    corpus: Corpus,
    settings: AuditSettings,
    *,
    ask: Ask | None = None,
    truth: GroundTruth | None = None,
    causal: tuple[Sequence[Triple], CausalSettings] | None = None,
    progress: Callable[[str], object] = lambda stage: None,
) -> Audit:
    """Measure a loaded DSPA artifact on ``corpus``; a judge explains when there is one to ``ask``; ``progress`` is told
    of each stage. ``causal``: held-out triples for the causal check.

    Raises ValueError for another method's artifact and for texts without a single counted token.
    """
    steering = model.intervention
    if not isinstance(steering, DSPASteering):
        raise ValueError(f"only DSPA artifacts can be audited, this one is of method {model.method!r}")

    progress("densities")
    roles = zip(("input", "output"), steering.saes, steering.settings.norm_limits, strict=True)
    saes = {role: Measurement(sae, len(KINDS), limit) for role, sae, limit in roles}
    for batch in residual_batches(model, corpus.texts, {one.sae.layer for one in saes.values()}):
        for one in saes.values():
            one.add(batch)
    if not int(saes["output"].tokens.sum()):
        raise ValueError("the texts have no token that counts (only special ones); give other texts")
    live = saes["output"].density > 0
    ranking = rank_latents(steering.condition_map.column_sums.cpu(), live, settings.top, settings.seed)
    ranked = list(dict.fromkeys(chain.from_iterable(ranking.values())))

    conditionality = None
    if corpus.prompts:
        progress("prompts")
        conditionality = measure_conditionality(model, corpus.prompts, examples=settings.examples, seed=settings.seed)
    progress("answers")
    coverage = _coverage(model, corpus, settings, truth)
    parts = list(coverage.values())
    edited = sum(parts[1:], parts[0]) if parts else None

    progress("snippets")
    examples = conditionality.examples if conditionality else ()
    wanted = [*ranked, *(edited.most_edited() if edited else ()), *(s.latent for e in examples for s in e.selected)]
    gates = [gate.latent for e in examples for gate in e.gates]
    collectors = {
        role: SnippetCollector(saes[role].sae, sorted(set(latents)), settings.snippets, saes[role].limit)
        for role, latents in (("output", wanted), ("input", gates))
    }
    for batch in residual_batches(model, corpus.texts, {one.sae.layer for one in saes.values()}):
        for collector in collectors.values():
            collector.add(batch)
    snippets, gate_snippets = (collector.snippets(model.tokenizer) for collector in collectors.values())

    explanations, spent = None, 0
    if ask is not None:
        progress("explanations")
        explanations, spent = explain(ask, {i: snippets[i] for i in ranked})
    labels, by_label = None, None
    if truth is not None:
        progress("ground truth")
        labels = measure_labels(model, truth, saes["output"])
        by_label = count_by_label(labels, truth, corpus.prompts, live, ranking, conditionality, coverage)
    check, recovered = None, None
    if causal is not None:
        check = causal_check(model, *causal, every_latent=truth is not None, progress=progress)
        if labels is not None and truth is not None:
            recovered = recover(check, labels, truth)
    return Audit(
        model, settings, corpus, saes, ranking, conditionality, edited, snippets, gate_snippets, explanations, spent,
        truth, labels, by_label, check, recovered,
    )  # fmt: skip


def rank_latents(
    column_sums: Float[Tensor, " d_sae"], live: Bool[Tensor, " d_sae"], top: int, seed: int
) -> dict[str, list[int]]:
    """Set -> its latents, strongest first, the random ones by number.

    The ``top`` smallest (ablate; below 0) and largest (augment; above 0) column sums sum_i A_ij, ties to the lower
    latent, and as many ``live`` latents drawn with ``seed`` (from all of them, so they may be among the others too).
    """
    ascending, descending = column_sums.sort(stable=True), column_sums.sort(descending=True, stable=True)
    candidates = live.nonzero()[:, 0]
    drawn = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:top]]
    return {
        "ablate": ascending.indices[:top][ascending.values[:top] < 0].tolist(),
        "augment": descending.indices[:top][descending.values[:top] > 0].tolist(),
        "random": sorted(drawn.tolist()),
    }


def _coverage(
    model: AlignedModel, corpus: Corpus, settings: AuditSettings, truth: GroundTruth | None
) -> dict[str, Coverage]:
    """Answers to some prompts, group by group where the ground truth knows groups."""
    count = min(settings.generate, len(corpus.prompts))
    groups: dict[str, list] = {}
    for prompt in Random(settings.seed).sample(corpus.prompts, count):
        group = "all prompts" if truth is None else truth.group(prompt) or "other prompts"
        groups.setdefault(group, []).append(prompt)
    return {
        group: measure_coverage(model, prompts, max_new_tokens=settings.max_new_tokens)
        for group, prompts in sorted(groups.items())
    }
