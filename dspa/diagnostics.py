"""Is the steering conditional on the prompt, on how much evidence, and what does it edit? Figures for every report."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dspa.map.score_map import ScoreMap

LEGEND = {
    "jaccard": "mean Jaccard similarity of the latent sets of two prompts; 1: every prompt gets the same set",
    "cosine_to_global": "mean cosine of a prompt's scores with the global mean difference; 1: nothing is conditional",
    "set_size": "latents selected per prompt",
    "median_support": "triples whose gate is open for a selected input latent, median over prompts and latents",
    "sure_share": "share of the selected output latents whose untruncated score has a bootstrap interval without 0; "
    "they were selected as extremes, so this is not a test",
    "edited_share": "share of the steered tokens that were changed",
    "edited_latents": "output latents that were edited at least once",
    "edits_in_top": "share of the edits on the 50 largest and 50 smallest columns of the map, the audited latents",
    "unexplained_share": "leave-one-out error of predicting the differences of answers from what is active in their "
    "prompts, over their spread around the mean; near 1: these prompts' features do not predict the preference, and a "
    "fixed set of latents would do as well",
    "ridge_lambda": "penalty of the ridge scores with the smallest leave-one-out error; at 30, the largest on offer, "
    "little more than the mean is used",
    "rank_error": "relative error of the fitted ridge scores, without their mean, from keeping so few factors",
}
"""A sentence for each of `selection_figures` and for what a fit finds out (the last three)."""
_KEPT_PROMPTS = 512  # bounds memory; the first prompts of a run are as good as any
_BOOTSTRAPPED_PROMPTS = 32  # an interval costs a thousand resamples of the map
_AUDITED = 50  # latents at either end of the map's column sums: the paper's audited sets
_BUCKETS = 14  # the last one holds all that comes after 2**13 tokens


class SelectionTally:
    """What one steering session selected for its prompts and edited at its tokens. Noting never waits for the device.

    ``read`` gives, of the first 512 prompts, ``inputs`` and ``latents`` (the selected sets, -1: none) and ``cosines``
    (of the scores with the map's mean difference); of all tokens, ``edits`` ([latent, count], edited ones only) and
    ``tokens`` and ``changed`` (steered and changed tokens by age: token 1, 2-3, 4-7, ... of the answer).
    """

    def __init__(self, condition_map: ScoreMap) -> None:
        self._mean = condition_map.mean_difference
        device = self._mean.device
        self._selected: dict[str, list[Tensor]] = {"inputs": [], "latents": [], "cosines": []}
        self._room = _KEPT_PROMPTS
        self._by_age = torch.zeros(2, _BUCKETS, dtype=torch.long, device=device)
        ages = torch.arange(2**_BUCKETS, device=device)
        self._bucket_of = ages.clamp(min=1).float().log2().floor().long()
        self._edits = torch.zeros(condition_map.d_sae, dtype=torch.long, device=device)

    def selected(
        self, inputs: Int[Tensor, "batch k_in"], latents: Int[Tensor, "batch k"], scores: Float[Tensor, "batch d_sae"]
    ) -> None:
        """Note the sets of one batch of prompts; -1 in ``inputs`` and ``latents`` stands for none."""
        if self._room:
            cosines = torch.cosine_similarity(scores, self._mean[None], dim=1)
            for name, rows in (("inputs", inputs), ("latents", latents), ("cosines", cosines)):
                self._selected[name].append(rows[: self._room])
            self._room -= min(self._room, len(inputs))

    def edited(
        self,
        changed: Bool[Tensor, "batch pos k"],
        latents: Int[Tensor, "batch k"],
        steered: Bool[Tensor, "batch pos"],
        seen: Int[Tensor, " batch"],
    ) -> None:
        """Note the edits of one forward; ``seen`` counts each row's steered tokens so far and is moved on."""
        counts = changed.sum(1)
        self._edits.index_add_(0, latents.flatten(), counts.flatten())
        age = seen[:, None] + steered.cumsum(1)  # 1 = the first steered token, which is the last of the prompt
        bucket = self._bucket_of[age.clamp_(max=len(self._bucket_of) - 1)]
        figures = torch.stack([steered, changed.any(-1)]).long()
        self._by_age.scatter_add_(1, bucket.flatten().expand(2, -1), figures.flatten(1))
        seen += steered.sum(1)

    def read(self) -> dict[str, Any]:
        """See the class; waits for the device."""
        selected = {name: [row for part in parts for row in part.tolist()] for name, parts in self._selected.items()}
        edited = self._edits.nonzero()[:, 0]
        edits = torch.stack([edited, self._edits[edited]], dim=1).tolist()
        tokens, changed = self._by_age.tolist()
        return {**selected, "edits": edits, "tokens": tokens, "changed": changed}


Tallies = Sequence[Mapping[str, Any]]
"""What `SelectionTally.read` gave for several sessions, in their order."""


def edit_counts(tallies: Tallies, d_sae: int) -> Int[Tensor, " d_sae"]:
    """How often each output latent was edited."""
    counts = torch.zeros(d_sae, dtype=torch.long)
    for tally in tallies:
        for latent, count in tally["edits"]:
            counts[latent] += count
    return counts


def edited_share(tallies: Tallies) -> float:
    """Share of the steered tokens that were changed; NaN when none were steered."""
    tokens, changed = (sum(sum(tally[name]) for tally in tallies) for name in ("tokens", "changed"))
    return changed / tokens if tokens else float("nan")


def edited_share_by_age(tallies: Tallies) -> list[tuple[int, int, float]]:
    """(first token, last token, share edited) for tokens 1, 2-3, 4-7, ... of the answers; token 1 is decided at the
    last prompt token."""
    sums = [[sum(ages) for ages in zip(*(t[name] for t in tallies), strict=True)] for name in ("tokens", "changed")]
    return [(2**b, 2 ** (b + 1) - 1, c / n) for b, (n, c) in enumerate(zip(*sums, strict=True)) if n]


def selection_figures(condition_map: ScoreMap, tallies: Tallies) -> dict[str, float]:
    """The figures of `LEGEND`, over the first 512 prompts (``sure_share``: 32) and all tokens of the sessions.

    A figure for which there is nothing to go by is left out; the intervals are bootstrapped here, once.
    """

    def first(name: str, count: int) -> list[Any]:
        return list(islice((row for tally in tallies for row in tally[name]), count))

    figures: dict[str, float] = {}
    sets = [frozenset(latent for latent in row if latent >= 0) for row in first("latents", _KEPT_PROMPTS)]
    if len(sets) >= 2:
        figures["jaccard"] = mean_pairwise_jaccard(sets)
    if sets:
        cosines = first("cosines", _KEPT_PROMPTS)
        figures["cosine_to_global"] = sum(cosines) / len(cosines)
        figures["set_size"] = sum(map(len, sets)) / len(sets)
        device = condition_map.mean_difference.device
        inputs = torch.tensor(first("inputs", _KEPT_PROMPTS), dtype=torch.long, device=device)
        if condition_map.support is not None and bool((inputs >= 0).any()):
            figures["median_support"] = float(condition_map.support[inputs[inputs >= 0]].float().median())
        latents = torch.tensor(first("latents", _BOOTSTRAPPED_PROMPTS), device=device)
        interval = condition_map.interval(inputs[:_BOOTSTRAPPED_PROMPTS], latents)
        if interval is not None and bool((latents >= 0).any()):
            low, high = interval
            sure = ((low > 0) | (high < 0))[latents >= 0].tolist()
            figures["sure_share"] = sum(sure) / len(sure)
    edits = edit_counts(tallies, condition_map.d_sae)
    if any(sum(tally["tokens"]) for tally in tallies):
        figures["edited_share"] = edited_share(tallies)
        figures["edited_latents"] = float((edits > 0).sum())
    if total := int(edits.sum()):
        audited = torch.cat(condition_map.candidates(_AUDITED)).unique().to(edits.device)
        figures["edits_in_top"] = float(edits[audited].sum()) / total
    return figures


def mean_pairwise_jaccard(sets: Sequence[frozenset[int]]) -> float:
    """Mean Jaccard similarity over all pairs; two empty sets count as equal. Needs two sets (ValueError)."""
    if len(sets) < 2:
        raise ValueError("Jaccard similarity needs at least two sets")
    width = max((max(s, default=-1) for s in sets), default=-1) + 1
    member = torch.zeros(len(sets), max(width, 1))
    for row, latents in enumerate(sets):
        member[row, list(latents)] = 1
    shared = member @ member.t()
    sizes = member.sum(1)
    union = sizes[:, None] + sizes[None] - shared
    similarity = torch.where(union > 0, shared / union.clamp(min=1), 1.0)
    upper = torch.triu(torch.ones_like(similarity, dtype=torch.bool), diagonal=1)
    return float(similarity[upper].mean())
