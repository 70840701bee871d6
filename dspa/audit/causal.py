"""The causal check: is the map right about its latents, and do any latents carry the preference?

Sets of latents are edited one by one on held-out triples (`dspa.audit.effects`): those that the map selects for each
prompt; those that gradient attribution finds best on the triples of other prompts, which tells whether there are any
to be found; and for each of these latents a random one that fires as often, as control.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dspa.audit.effects import (
    SIGNS,
    Edit,
    FirstOrder,
    SelectedLatents,
    first_order,
    measure_edits,
    measure_margins,
    select_for,
)
from dspa.steering import DSPASteering
from harness.data.triples import Triple
from harness.measure.agreement import Weights, spearman
from harness.measure.statistics import (
    Difference,
    Estimate,
    Measurement,
    estimate_mean,
    estimate_statistic,
    paired_difference,
)
from harness.model.aligned import AlignedModel
from harness.model.residuals import encode_triples

SETS = ("selected", "best by gradient")
CONTROL = "control of "
MIN_PROMPTS = 6  # below this not even effects of one sign on all of them are significant at 5 %: 2 * 0.5^5 = 0.06
_NEIGHBOURS = 10  # latents of about the same density that a control is drawn from

Interval = tuple[float, float, float]
"""(value, low, high)"""

CASES = {
    (True, True): "**The map finds latents that carry the preference:** those that it selects raise the margin beyond "
    "random ones, and so do the best by gradient. What still fails lies elsewhere: the strength or number of edits, or "
    "generation.",
    (False, True): "**The map is wrong:** there are latents whose edit raises the margin beyond random ones (the best "
    "by gradient), but those that the map selects do not. Other scores, more triples, or `select: causal` may help.",
    (True, False): "**The map is right, and only by the prompt:** the latents it selects raise the margin beyond "
    "random ones, while no fixed set of latents does. Conditioning is what does it.",
    (False, False): "**The latents do not carry the preference:** neither those that the map selects nor the best by "
    "gradient raise the margin beyond random ones. No other map over these latents can be expected to help; another "
    "layer, another SAE, or another kind of edit may. (With few triples it may also be that nothing can be told.)",
}
"""(selected latents raise the margin beyond control, the best by gradient do) -> what it means."""
NO_ORDER = (
    "Its scores do not tell, though, which of the features edited here matter more: the rank correlation of the "
    "features' means with their measured effects may be 0."
)
BACKWARDS = "The selected latents **lower** the margin beyond random ones: the map points the wrong way round."


@dataclass(frozen=True)
class CausalSettings:
    """``triples``: how many are drawn (by ``seed``) of those given; ``latents``: largest number of latents edited for
    a prompt, the most extreme scores first."""

    triples: int = 100
    latents: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.triples < 2 or self.latents < 1:
            raise ValueError("the causal check needs at least 2 triples and 1 latent")


@dataclass(frozen=True)
class Effect:
    """Of editing one latent on one triple, in nats per token of the margin. ``expected``: what the map has for it, the
    score s_j(x) times the edit's sign (above 0: the edit should help); ``edited``: whether any token changes."""

    triple: int
    prompt: str
    latent: int
    sign: float
    expected: float
    gradient: float
    measured: float
    edited: bool


@dataclass(frozen=True)
class LatentEffect:
    """Mean effects of one latent over the triples on which it was edited, with the interval of the measured one."""

    latent: int
    sign: float
    expected: float
    gradient: float
    measured: Estimate

    @property
    def judged(self) -> bool:
        """Whether there are enough prompts to say something."""
        return self.measured.n_clusters >= MIN_PROMPTS

    @property
    def direction(self) -> int:
        """1: its edit raises the margin, -1: lowers it, 0: the interval includes 0, or there are too few prompts."""
        if not self.judged:
            return 0
        return int(self.measured.low > 0) - int(self.measured.high < 0)


@dataclass(frozen=True)
class Correlation:
    """Agreement of a prediction with the measured effect, each as (value, low, high). ``pairs``: Spearman's rank
    correlation over (triple, latent) pairs in which a token changes; ``latents``: of the latents' means; ``signs``:
    share of equal signs among the pairs where both differ from 0."""

    pairs: Interval
    latents: Interval
    signs: Interval


@dataclass(frozen=True, eq=False)
class CausalCheck:
    """``effects``: name of a set (`SETS`, each also with `CONTROL` in front) -> what was measured; ``n_triples`` were
    used of those given; ``measured``: edits that took forwards."""

    settings: CausalSettings
    n_triples: int
    n_prompts: int
    margin: Estimate
    """Of the unsteered model."""
    effects: Mapping[str, Sequence[Effect]]
    measured: int
    all_effects: Sequence[Effect] = field(default=(), repr=False)
    """Ablation of every latent on every triple on which it fires; only where it was asked for."""
    triples: Sequence[Triple] = field(default=(), repr=False)
    scores: Float[Tensor, "triple d_sae"] | None = field(default=None, repr=False)
    """s_j(x) of the triples' prompts."""

    @cached_property
    def by_latent(self) -> dict[str, list[LatentEffect]]:
        """Set -> each of its latents, most helpful first."""
        return {name: latent_means(effects) for name, effects in self.effects.items()}

    @property
    def effect_of(self) -> dict[int, LatentEffect]:
        """Latent -> its effect in the first set that has it."""
        found: dict[int, LatentEffect] = {}
        for latents in self.by_latent.values():
            for one in latents:
                found.setdefault(one.latent, one)
        return found

    @cached_property
    def means(self) -> dict[str, Estimate | None]:
        """Set -> mean effect of one edit; None for an empty set."""
        return {
            name: estimate_mean(_measurements(effects)) if effects else None for name, effects in self.effects.items()
        }

    @cached_property
    def gains(self) -> dict[str, Difference | None]:
        """Each of `SETS` -> its mean effect minus its control's, paired by triple."""
        found = {}
        for name in SETS:
            sides = [_per_triple(self.effects[which]) for which in (name, CONTROL + name)]
            shared = {m.item for m in sides[0]} & {m.item for m in sides[1]}
            found[name] = paired_difference(*sides) if shared else None
        return found

    @cached_property
    def correlations(self) -> dict[str, Correlation]:
        """``map`` and ``gradient`` -> agreement with the measured effect over all sets' edits together, each once."""
        edits = {(e.triple, e.latent, e.sign): e for effects in self.effects.values() for e in effects}
        pairs = list(edits.values())
        predicted = {"map": [e.expected for e in pairs], "gradient": [e.gradient for e in pairs]}
        return {name: _correlation(pairs, values) for name, values in predicted.items()} if pairs else {}

    @property
    def verdict(self) -> str:
        """In plain words."""
        helps = tuple((gain := self.gains[name]) is not None and gain.low > 0 for name in SETS)
        selected = self.gains["selected"]
        backwards = selected is not None and selected.high < 0
        said = [CASES[helps]]  # type: ignore[index]
        if backwards:
            said.append(BACKWARDS)
        elif helps[0] and not self.correlations["map"].latents[1] > 0:
            said.append(NO_ORDER)
        return " ".join(said)


def causal_check(
    model: AlignedModel,
    triples: Sequence[Triple],
    settings: CausalSettings,
    *,
    every_latent: bool = False,
    progress: Callable[[str], object] = lambda stage: None,
) -> CausalCheck:
    """Edit latents one by one on ``triples``, which the artifact was not fitted on.

    With ``every_latent`` each latent is also ablated on each triple on which it fires. Raises ValueError for fewer than
    two triples, and before any forward for one that does not fit the context.
    """
    steering = model.intervention
    assert isinstance(steering, DSPASteering)
    if len(triples) < 2:
        raise ValueError(f"the causal check needs at least 2 triples, got {len(triples)}")
    drawn = Random(settings.seed).sample(range(len(triples)), min(settings.triples, len(triples)))
    used = [triples[i] for i in sorted(drawn)]
    prompts = [str(triple.prompt) for triple in used]
    encoded = encode_triples(model, used)
    signs = SIGNS[steering.settings.mode]
    progress("causal check: gradients")
    gradient = first_order(model, encoded, tuple(sorted({*signs, *((-1.0,) if every_latent else ())})))
    selections = select_for(model, encoded)

    sets: dict[str, list[Edit]] = {
        "selected": [edit for n, one in enumerate(selections) for edit in _selected(n, one, settings.latents)],
        "best by gradient": best_by_gradient(gradient, signs, prompts, settings),
    }
    taken = {latent for edits in sets.values() for _, latent, _ in edits} | {j for one in selections for j in one.signs}
    matched = match_controls(gradient.density, taken, settings.seed)
    for name in SETS:
        own = ((n, matched[j], sign) for n, j, sign in sets[name] if j in matched)
        sets[CONTROL + name] = list(dict.fromkeys(own))
    every: list[Edit] = []
    if every_latent:
        fires = zip(gradient.active.row.tolist(), gradient.active.column.tolist(), strict=True)
        every = [(n, latent, -1.0) for n, latent in fires]

    # An edit that changes no token has no effect: the steered model is then the unsteered one, to the bit.
    active = set(zip(gradient.active.row.tolist(), gradient.active.column.tolist(), strict=True))
    unique = dict.fromkeys(edit for edits in (*sets.values(), every) for edit in edits)
    wanted = [edit for edit in unique if edit[:2] in active]
    progress(f"causal check: {len(wanted):,} single edits")
    before = measure_margins(model, encoded)
    measured = dict(zip(wanted, measure_edits(model, encoded, wanted, before), strict=True))

    slopes = {sign: [rows[n] for n in range(len(used))] for sign, rows in gradient.effects.items()}

    def effect(edit: Edit) -> Effect:
        n, latent, sign = edit
        expected, slope = sign * float(selections[n].scores[latent]), float(slopes[sign][n][latent])
        return Effect(n, prompts[n], latent, sign, expected, slope, measured.get(edit, 0.0), edit in measured)

    return CausalCheck(
        settings=settings,
        n_triples=len(used),
        n_prompts=len(set(prompts)),
        margin=estimate_mean([Measurement(0, prompts[n], n, margin) for n, margin in enumerate(before)]),
        effects={name: [effect(edit) for edit in edits] for name, edits in sets.items()},
        measured=len(wanted),
        all_effects=[effect(edit) for edit in every],
        triples=used,
        scores=torch.stack([one.scores for one in selections]),
    )


def _selected(n: int, one: SelectedLatents, count: int) -> list[Edit]:
    strongest = sorted(one.signs, key=lambda latent: (-abs(float(one.scores[latent])), latent))
    return [(n, latent, one.signs[latent]) for latent in strongest[:count]]


def best_by_gradient(
    gradient: FirstOrder, signs: Sequence[float], prompts: Sequence[str], settings: CausalSettings
) -> list[Edit]:
    """For the triples of either half of the prompts, the edits with the largest mean first-order effect (above 0) on
    the triples of the other half: one fixed set for each half."""
    distinct = sorted(set(prompts))
    Random(settings.seed).shuffle(distinct)
    half = set(distinct[: len(distinct) // 2])
    found: list[Edit] = []
    for inside in (True, False):
        own = [n for n, prompt in enumerate(prompts) if (prompt in half) == inside]
        other = torch.tensor([n for n, prompt in enumerate(prompts) if (prompt in half) != inside])
        if len(own) == 0 or len(other) == 0:
            continue
        means = torch.stack([gradient.effects[sign].select(other).mean() for sign in signs])
        values, places = means.flatten().sort(descending=True, stable=True)
        best = places[: settings.latents][values[: settings.latents] > 0].tolist()
        width = means.shape[1]
        found += [(n, place % width, signs[place // width]) for n in own for place in best]
    return found


def match_controls(density: Float[Tensor, " d_sae"], taken: Iterable[int], seed: int) -> dict[int, int]:
    """Latent -> its control: one drawn by ``seed`` from the ten that are nearest in the logarithm of their density,
    among those that fire and are not ``taken``. Latents that never fire have none; a control may serve several."""
    latents = sorted(taken)
    free = density > 0
    free[latents] = False
    pool = free.nonzero()[:, 0]
    rng, found = Random(seed), {}
    for latent in latents if len(pool) else ():
        if density[latent] > 0:
            distance = (density[pool].log() - density[latent].log()).abs()
            nearest = pool[distance.sort(stable=True).indices[:_NEIGHBOURS]].tolist()
            found[latent] = rng.choice(nearest)
    return found


def latent_means(effects: Iterable[Effect]) -> list[LatentEffect]:
    """One entry a latent (and sign), largest measured mean first."""
    grouped: dict[tuple[int, float], list[Effect]] = defaultdict(list)
    for effect in effects:
        grouped[effect.latent, effect.sign].append(effect)
    found = []
    for (latent, sign), own in grouped.items():
        expected, gradient = (float(np.mean([getattr(e, name) for e in own])) for name in ("expected", "gradient"))
        measured = estimate_mean(_measurements(own))
        found.append(LatentEffect(latent, sign, expected, gradient, measured))
    return sorted(found, key=lambda one: (-one.measured.mean, one.latent))


def _measurements(effects: Iterable[Effect]) -> list[Measurement]:
    return [Measurement(0, e.prompt, (e.triple, e.latent, e.sign), e.measured) for e in effects]


def _per_triple(effects: Iterable[Effect]) -> list[Measurement]:
    """The mean over the edits of each triple."""
    grouped: dict[tuple[str, int], list[float]] = defaultdict(list)
    for effect in effects:
        grouped[effect.prompt, effect.triple].append(effect.measured)
    return [Measurement(0, prompt, n, float(np.mean(values))) for (prompt, n), values in grouped.items()]


def _correlation(effects: Sequence[Effect], predicted: Sequence[float]) -> Correlation:
    clusters, zeros = [e.prompt for e in effects], [0] * len(effects)
    a, b = np.array(predicted), np.array([e.measured for e in effects])
    keys = sorted({(e.latent, e.sign) for e in effects})
    place = np.array([keys.index((e.latent, e.sign)) for e in effects])

    def of_means(w: Weights) -> float:
        weight = np.bincount(place, weights=w, minlength=len(keys))
        drawn = weight > 0
        means = [np.bincount(place, weights=w * x, minlength=len(keys))[drawn] / weight[drawn] for x in (a, b)]
        return spearman(means[0], means[1], np.ones(int(drawn.sum())))

    def over(mask: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray, Weights], float]) -> Interval:
        if not mask.any():
            return math.nan, math.nan, math.nan
        kept = [clusters[i] for i in mask.nonzero()[0]]
        x, y = a[mask], b[mask]
        return estimate_statistic(lambda w: statistic(x, y, w), [0] * len(kept), kept)

    edited = np.array([e.edited for e in effects])
    return Correlation(
        pairs=over(edited, spearman),
        latents=estimate_statistic(of_means, zeros, clusters),
        signs=over((a != 0) & (b != 0), lambda x, y, w: float(np.average(np.sign(x) == np.sign(y), weights=w))),
    )
