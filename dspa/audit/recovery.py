"""Where the truth is known: do the most harmful latents belong to what the preference data speak against?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dspa.audit.causal import CausalCheck
from dspa.audit.truth import Labels
from harness.truth import GroundTruth

RANKINGS = ("measured", "gradient", "map")
AT = (3, 5, 10, 16)
"""Numbers of latents at the top of a ranking."""


@dataclass(frozen=True)
class Hits:
    """Of the ``count`` latents at the top of a ranking (fewer than asked for where the others do no harm): how many are
    the dispreferred labels' and the preferred one's within the group."""

    count: int
    dispreferred: int
    preferred: int


@dataclass(frozen=True)
class Recovery:
    """One group of prompts, with ``triples`` triples. ``owned``: latents that are the dispreferred labels'; ``live``:
    latents that fire on the triples; ``hits``: ranking -> number of latents at the top -> `Hits`; ``harm``: share of
    the harmful measured effects (means above 0, summed) on the dispreferred labels' latents, the preferred one's and
    all others."""

    triples: int
    owned: int
    live: int
    hits: Mapping[str, Mapping[int, Hits]]
    harm: tuple[float, float, float]

    @property
    def chance(self) -> float:
        """Precision of a draw from the latents that fire."""
        return self.owned / max(self.live, 1)


def recover(check: CausalCheck, labels: Labels, truth: GroundTruth) -> dict[str, Recovery]:
    """Group -> what is found there. Latents are ranked by the effect of ablating them, mean over the group's triples:
    as measured, to first order, and as the map has it (-s_j(x)). Needs a check of every latent."""
    assert check.scores is not None
    groups = [truth.group(triple.prompt) for triple in check.triples]
    found = {}
    for group in labels.preferred:
        rows = [n for n, own in enumerate(groups) if own == group]
        if rows:
            found[group] = _recovery(check, rows, labels.owned(group, "dispreferred"), labels.owned(group, "preferred"))
    return found


def _recovery(
    check: CausalCheck, rows: Sequence[int], against: Bool[Tensor, " d_sae"], wanted: Bool[Tensor, " d_sae"]
) -> Recovery:
    assert check.scores is not None
    effects = {name: torch.zeros(len(against)) for name in ("measured", "gradient")}
    live, inside = torch.zeros_like(against), set(rows)
    for effect in check.all_effects:
        if effect.triple in inside:
            live[effect.latent] = True
            for name, total in effects.items():
                total[effect.latent] += getattr(effect, name) / len(rows)
    effects["map"] = -check.scores[list(rows)].mean(0)
    hits = {name: {k: _hits(effects[name], k, against, wanted) for k in AT} for name in RANKINGS}
    harm = effects["measured"].clamp(min=0)
    total = float(harm.sum()) or 1.0
    shares = [float(harm[side].sum()) / total for side in (against, wanted, ~(against | wanted))]
    return Recovery(len(rows), int(against.sum()), int(live.sum()), hits, (shares[0], shares[1], shares[2]))


def _hits(
    effects: Float[Tensor, " d_sae"], k: int, against: Bool[Tensor, " d_sae"], wanted: Bool[Tensor, " d_sae"]
) -> Hits:
    ordered = effects.sort(descending=True, stable=True)
    top = ordered.indices[:k][ordered.values[:k] > 0]
    return Hits(len(top), int(against[top].sum()), int(wanted[top].sum()))
