"""The causal check as a section of the audit's page, and as data."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from dspa.audit.causal import CONTROL, MIN_PROMPTS, SETS, CausalCheck, Correlation, LatentEffect
from dspa.audit.recovery import AT, RANKINGS, Recovery
from harness import markdown as md
from harness.measure.statistics import Estimate

_SHOWN = 10  # latents at either end of the measured effects
_MILLI = 1000  # one latent moves a margin by thousandths


def causal_section(
    check: CausalCheck, texts: str, labels: Mapping[int, str | None] | None, recovered: Mapping[str, Recovery] | None
) -> Iterator[str]:
    """``texts``: the file of triples; ``labels``: latent -> its label where there is a ground truth."""
    yield "## Causal check: what editing single features does"
    yield (
        f"Held-out triples: {md.code(texts)}, {check.n_triples} of them with {check.n_prompts} different prompts. Each "
        "feature is edited alone, by the artifact's own edit, and the triple's margin measured again by real forwards: "
        "log p(chosen) - log p(rejected), each per token. Effects are in thousandths of a nat per token (positive: the "
        f"edit helps); the unsteered margin is {_effect(check.margin)}. Intervals: 95 %, over prompts. "
        f"{check.measured:,} edits change a token and took forwards; the others have no effect."
    )
    yield check.verdict
    yield _sets_table(check)
    yield (
        "*selected*: the features that the map selects for each prompt (the "
        f"{check.settings.latents} most extreme). *best by gradient*: for each half of the prompts, the features whose "
        "edit has the largest mean first-order effect on the other half; they show whether any features carry the "
        "preference. *control*: for each feature a random one that fires as often and is in neither set. Gain: mean "
        f"minus the control's, paired by triple. A feature helps (harms) when the interval of its mean effect excludes "
        f"0, which is judged from {MIN_PROMPTS} prompts on; 2.5 % of features without effect would seem to, each way."
    )
    if check.correlations:
        yield _correlation_table(check.correlations)
        yield (
            "Rank correlations with the measured effect, over all these edits: pairs of a triple and a feature in "
            "which a token changes, and the features' means. *map*: the score s_j(x) times the edit's sign. "
            "*gradient*: the first-order effect of the same edit, from one backward pass a triple; it knows the "
            "answers, the map only the prompt."
        )
    latents = check.by_latent["selected"]
    if latents:
        ends = latents[:_SHOWN] + [one for one in latents[-_SHOWN:] if one not in latents[:_SHOWN]]
        yield f"Of the {len(latents)} selected features, those whose edit helps most and least:"
        yield _latent_table(ends, labels)
    if recovered is not None:
        yield from _recovery(recovered)


def _sets_table(check: CausalCheck) -> str:
    rows = []
    for name in (*SETS, *(CONTROL + name for name in SETS)):
        effects, latents, mean = check.effects[name], check.by_latent[name], check.means[name]
        if mean is None:
            rows.append([name, "0", "0", *[md.EMPTY] * 6])
            continue
        gain = check.gains.get(name)
        edited = sum(effect.edited for effect in effects) / len(effects)
        counts = [
            sum(one.judged for one in latents),
            *(sum(one.direction == way for one in latents) for way in (1, -1)),
        ]
        cells = [f"{len(effects):,}", f"{len(latents):,}", f"{100 * edited:.0f}", _effect(mean)]
        rows.append([name, *cells, md.EMPTY if gain is None else _effect(gain), *map(str, counts)])
    headers = ["set", "edits", "features", "change a token (%)", "mean effect", "gain", "judged", "help", "harm"]
    return md.table(headers, rows)


def _correlation_table(found: Mapping[str, Correlation]) -> str:
    rows = []
    for name, one in found.items():
        same, low_same, high_same = (100 * value for value in one.signs)
        cells = [f"{value:.2f} {md.interval(low, high, 2)}" for value, low, high in (one.pairs, one.latents)]
        rows.append([name, *cells, f"{same:.0f} {md.interval(low_same, high_same, 0)}"])
    headers = ["predicted by", "rank correlation, pairs", "rank correlation, features", "same sign (%)"]
    return md.table(headers, rows)


def _latent_table(latents: list[LatentEffect], labels: Mapping[int, str | None] | None) -> str:
    rows = []
    for one in latents:
        cells = [str(one.latent), "ablate" if one.sign < 0 else "augment", str(one.measured.n), _effect(one.measured)]
        cells += [f"{_MILLI * one.gradient:+.2f}", f"{one.sign * one.expected:+.3g}"]
        rows.append(cells + ([] if labels is None else [labels[one.latent] or md.EMPTY]))
    headers = ["feature", "edit", "triples", "mean effect", "by gradient", "mean score"]
    return md.table(headers + ([] if labels is None else ["label"]), rows, text_columns=2)


def _recovery(recovered: Mapping[str, Recovery]) -> Iterator[str]:
    yield "### Does it find what the preference data speak against?"
    if not recovered:
        yield "No triple's prompt belongs to a known group."
        return
    at = " / ".join(map(str, AT))
    yield (
        "Every feature was also ablated alone on every triple on which it fires. Per group of prompts, features are "
        "ranked by the mean effect of their ablation: as measured, by gradient, and by the map's mean score; "
        f"of the {at} most harmful, the percent that are the dispreferred label's within the group (precision), the "
        f"percent of all of that label's features among the {AT[-1]} (recall), and the percent that are the preferred "
        "label's (the wrong way round). Chance: of the features that fire. What a label's features are goes by where "
        "they fire; that one does something is another matter, so a low recall can be true. Harm: share of the summed "
        "harmful effects."
    )
    rows = []
    for group, one in recovered.items():
        for name in RANKINGS:
            hits = one.hits[name]
            precision = " / ".join(f"{_percent(hits[k].dispreferred, hits[k].count)}" for k in AT)
            last = hits[AT[-1]]
            cells = [precision, _percent(last.dispreferred, one.owned), _percent(last.preferred, last.count)]
            rows.append([md.escape(f"{group} ({one.triples} triples)"), name, *cells, f"{100 * one.chance:.1f}"])
    headers = ["group", "ranked by", f"precision at {at}", f"recall at {AT[-1]}", "preferred's", "chance"]
    yield md.table(headers, rows, text_columns=2)
    names = ("dispreferred label's", "preferred label's", "other")
    rows = [[md.escape(group), *(f"{100 * share:.0f}" for share in one.harm)] for group, one in recovered.items()]
    yield md.table(["group", *(f"harm on the {name} features (%)" for name in names)], rows)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else md.EMPTY


def _effect(found: Estimate) -> str:
    low, high = _MILLI * found.low, _MILLI * found.high
    return f"{_MILLI * found.mean:+.2f} {md.interval(low, high, 2)}"


def causal_data(check: CausalCheck, recovered: Mapping[str, Recovery] | None) -> dict[str, Any]:
    """Everything as JSON, effects in nats per token; NaN where something is undefined."""
    return {
        "settings": asdict(check.settings),
        "triples": check.n_triples,
        "prompts": check.n_prompts,
        "edits_measured": check.measured,
        "unsteered_margin": asdict(check.margin),
        "verdict": check.verdict,
        "sets": {
            name: {
                "edits": len(effects),
                "edited": sum(effect.edited for effect in effects),
                "mean_effect": None if (mean := check.means[name]) is None else asdict(mean),
                "gain_over_control": None if (gain := check.gains.get(name)) is None else asdict(gain),
                "features": [latent_data(one) for one in check.by_latent[name]],
            }
            for name, effects in check.effects.items()
        },
        "correlations": {name: asdict(one) for name, one in check.correlations.items()},
        "ground_truth": None
        if recovered is None
        else {group: asdict(one) | {"chance": one.chance} for group, one in recovered.items()},
    }


def latent_data(one: LatentEffect) -> dict[str, Any]:
    """One latent's entry."""
    measured = one.measured
    return {
        "feature": one.latent,
        "sign": one.sign,
        "triples": measured.n,
        "effect": measured.mean,
        "effect_low": measured.low,
        "effect_high": measured.high,
        "gradient": one.gradient,
        "mean_score": one.sign * one.expected,
    }
