"""How the artifact's sets stand to the ground truth: selected and edited latents by what they are measured to be."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dspa.audit.audit import Audit
from dspa.audit.ranking import SETS
from dspa.audit.truth import STANDINGS, Labels


def standings(audit: Audit) -> dict[str, Any]:
    """Counts by standing. ``labels``: latents per label among all live ones and in each audited set; ``prompts``: for
    each group, the latents selected for its prompts, the edits made on them, and the live latents as a base rate, each
    as {dispreferred, preferred, other, none}, with their mean ``leaning`` (see `Labels`) and how many are ``silent``.
    """
    labels, truth, conditional = audit.labels, audit.truth, audit.conditionality
    assert labels is not None and truth is not None
    live = (audit.output.density > 0).nonzero()[:, 0].tolist()
    by_set = {"live": live} | {name: list(audit.ranking.members(name)) for name in SETS}
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(audit.corpus.prompts):
        group = truth.group(prompt)
        if group in labels.preferred:
            groups.setdefault(str(group), []).append(index)
    found: dict[str, Any] = {}
    for group in (g for g in labels.preferred if g in groups):
        rows = groups[group]
        entry: dict[str, Any] = {
            "preferred": labels.preferred[group],
            "dispreferred": [name for name in labels.spoken[group] if name != labels.preferred[group]],
            "prompts": len(rows),
            "live": _counts(labels, group, Counter(live)),
        }
        for kind in ("ablated", "augmented"):
            assert conditional is not None
            sets = getattr(conditional, kind)
            entry[kind] = _counts(labels, group, Counter(latent for row in rows for latent in sets[row]))
        edits = audit.coverage[group].edits.tolist() if group in audit.coverage else []
        entry["edits"] = _counts(labels, group, {latent: count for latent, count in enumerate(edits) if count})
        found[group] = entry
    return {
        "labels": {
            name: dict(Counter(labels.label_of(i) or "none" for i in latents)) for name, latents in by_set.items()
        },
        "prompts": found,
    }


def _counts(labels: Labels, group: str, times: Mapping[int, int]) -> dict[str, int | float]:
    """Latents (each as many ``times`` as it occurs) by standing, and how they lean on average."""
    found: dict[str, int | float] = dict.fromkeys((*STANDINGS, "silent"), 0)
    leaning, weight = 0.0, 0
    for latent, count in times.items():
        found[labels.standing(group, latent)] += count
        lean = float(labels.leaning[group][latent])
        if math.isnan(lean):
            found["silent"] += count
        else:
            leaning, weight = leaning + count * lean, weight + count
    return found | {"leaning": leaning / weight if weight else math.nan}
