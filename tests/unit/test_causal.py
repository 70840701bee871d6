"""The causal check: single edits against whole texts edited by hand, first-order effects against small steps."""

from collections import Counter
from random import Random

import pytest
import torch

from dspa.audit.causal import (
    BACKWARDS,
    CASES,
    NO_ORDER,
    CausalCheck,
    CausalSettings,
    Effect,
    best_by_gradient,
    causal_check,
    latent_means,
    match_controls,
)
from dspa.audit.effects import FirstOrder, first_order, measure_edits, measure_margins, select_for
from dspa.map.sparse import SparseRows
from dspa.method import DSPA
from harness.compute import Meter
from harness.data.triples import Triple
from harness.measure.statistics import Estimate
from harness.model.decoder import find_decoder
from harness.model.residuals import encode_triples


def fit(base, triples, sae_refs, **params):
    options = {"gate": "strict", "percentile": 50.0, "min_support": 1, "alpha": 0.5, "k_prompt": 8, "k_diff": 4}
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], **(options | params))
    return method.fit(base, triples, meter=Meter(base.model, sample_profile=False), seed=0)


def margin_by_hand(aligned, triple: Triple, latent: int | None, sign: float) -> float:
    """Each text whole and alone; the edit written out with SAELens' own encode and decoder."""
    steering, chat = aligned.intervention, aligned.chat
    settings, sae = steering.settings, steering.saes[1]
    prompt, *answers = aligned.triple_ids(triple)
    margin = 0.0
    for side, answer in zip((1, -1), answers, strict=True):
        ids = prompt + answer
        first = 0 if settings.positions == "all" else len(prompt) - 1

        def edit(_module, _args, output, ids=ids, first=first):
            output = output.clone()
            for place in range(first, len(ids)):
                latents = sae.sae.encode(output[0, place][None])[0]
                if latent is not None and latents[latent] > 0 and ids[place] not in chat.special_ids:
                    size = latents.max() if settings.scale == "max" else latents[latent]
                    moved = (latents[latent] + sign * settings.alpha * size).clamp(min=0)
                    output[0, place] += (moved - latents[latent]) * sae.sae.W_dec[latent]
            return output

        hook = find_decoder(aligned.model).layers[sae.layer].register_forward_hook(edit)
        with torch.no_grad():
            logits = aligned.model(input_ids=torch.tensor([ids])).logits[0]
        hook.remove()
        targets = torch.tensor([*answer, chat.end_id])
        values = logits[len(prompt) - 1 :].log_softmax(-1).gather(1, targets[:, None])
        margin += side * float(values.mean())
    return margin


@pytest.mark.parametrize(
    ("family", "params"),
    [
        ("llama", {}),
        ("gemma2", {"scale": "own", "mode": "both"}),
        ("qwen3", {"positions": "all", "mode": "augment"}),
        ("llama", {"condition": "last_turn"}),
    ],
)
def test_measured_effects_equal_single_edits_of_whole_texts(tiny_base, triples, sae_refs, family, params):
    aligned = fit(tiny_base(family), triples, sae_refs, **params)
    some = triples[:4]
    encoded = encode_triples(aligned, some)
    signs = (1.0,) if params.get("mode") == "augment" else (-1.0,)
    found = first_order(aligned, encoded, signs)
    active = list(zip(found.active.row.tolist(), found.active.column.tolist(), strict=True))
    edits = [(n, latent, signs[0]) for n, latent in Random(1).sample(active, 12)]
    before = measure_margins(aligned, encoded)
    for n, triple in enumerate(some):
        assert before[n] == pytest.approx(margin_by_hand(aligned, triple, None, 0.0), abs=1e-5)
    effects = measure_edits(aligned, encoded, edits, before)
    for (n, latent, sign), effect in zip(edits, effects, strict=True):
        by_hand = margin_by_hand(aligned, some[n], latent, sign) - before[n]
        assert effect == pytest.approx(by_hand, abs=2e-5)
    assert max(map(abs, effects)) > 1e-3


@pytest.mark.parametrize("mode", ["ablate", "augment"])
def test_the_gradient_is_what_small_steps_of_the_same_edit_do(tiny_base, triples, sae_refs, mode):
    alpha = 0.02
    aligned = fit(tiny_base("llama"), triples, sae_refs, scale="own", alpha=alpha, mode=mode)
    encoded = encode_triples(aligned, triples[:5])
    sign = -1.0 if mode == "ablate" else 1.0
    found = first_order(aligned, encoded, (sign,))
    slopes = found.effects[sign].dense()
    strongest = slopes.abs().flatten().topk(15).indices.tolist()
    edits = [(place // slopes.shape[1], place % slopes.shape[1], sign) for place in strongest]
    measured = measure_edits(aligned, encoded, edits, measure_margins(aligned, encoded))
    for (n, latent, _), value in zip(edits, measured, strict=True):
        assert value == pytest.approx(float(slopes[n, latent]), rel=0.15, abs=2e-5)


def test_an_edit_that_changes_no_token_is_not_measured_and_has_no_effect(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("gemma2"), triples, sae_refs)
    encoded = encode_triples(aligned, triples[:3])
    found = first_order(aligned, encoded, (-1.0,))
    silent = (found.active.dense() == 0).nonzero().tolist()[:6]
    assert silent
    before = measure_margins(aligned, encoded)
    effects = measure_edits(aligned, encoded, [(n, latent, -1.0) for n, latent in silent], before)
    assert effects == pytest.approx([0.0] * len(silent), abs=1e-6)


@pytest.mark.parametrize("params", [{}, {"condition": "last_turn"}, {"control": "other_prompt"}])
def test_what_is_selected_is_what_steering_selects(tiny_base, triples, sae_refs, params):
    aligned = fit(tiny_base("llama"), triples, sae_refs, mode="both", **params)
    encoded = encode_triples(aligned, triples[:6])
    for one, triple in zip(select_for(aligned, encoded), triples[:6], strict=True):
        with aligned.steering() as session, torch.no_grad():
            aligned.model(input_ids=torch.tensor([aligned.prompt_ids(triple.prompt)]))
            latents = session.counts()["latents"][0]
        assert list(one.signs) == [latent for latent in latents if latent >= 0]
        assert all(sign * float(one.scores[latent]) > 0 for latent, sign in one.signs.items())


def test_controls_fire_about_as_often_and_are_in_no_set():
    density = torch.tensor([0.5, 0.0, *[0.001 * 1.3**i for i in range(30)]])
    taken = {0, 1, 10, 25}
    found = match_controls(density, taken, seed=0)
    assert set(found) == {0, 10, 25} and not set(found.values()) & taken  # latent 1 never fires
    assert found == match_controls(density, taken, seed=0)
    for latent in (10, 25):
        assert 1.3**-11 < float(density[found[latent]] / density[latent]) < 1.3**11
    assert match_controls(density, range(32), seed=0) == {}


def test_the_best_by_gradient_are_chosen_on_the_other_half_of_the_prompts():
    effects = torch.zeros(4, 6)
    effects[:2, 0], effects[2:, 1], effects[:, 2] = 1.0, 1.0, -1.0
    rows = SparseRows.from_dense(effects)
    found = FirstOrder({-1.0: rows}, rows, torch.ones(4, dtype=torch.long))
    prompts = ["a", "a", "b", "b"]
    edits = best_by_gradient(found, (-1.0,), prompts, CausalSettings(latents=3))
    assert sorted(edits) == [(0, 1, -1.0), (1, 1, -1.0), (2, 0, -1.0), (3, 0, -1.0)]
    assert best_by_gradient(found, (-1.0,), ["a"] * 4, CausalSettings()) == []


def made(selected: float, best: float, control: float = 0.0, *, order: float = 1.0) -> CausalCheck:
    """A check of 20 prompts and 3 latents a set, with the given mean effects."""
    draw = Random(0)

    def effects(mean: float, first: int) -> list[Effect]:
        return [
            Effect(n, f"p{n}", first + k, -1.0, order * value, value, value, edited=True)
            for n in range(20)
            for k in range(3)
            for value in [mean + k * 0.01 + draw.gauss(0, 0.1)]
        ]

    sets = {"selected": selected, "best by gradient": best, "control of selected": control}
    found = {name: effects(mean, 10 * i) for i, (name, mean) in enumerate(sets.items())}
    found["control of best by gradient"] = effects(control, 40)
    return CausalCheck(CausalSettings(), 20, 20, Estimate(0.0, 0.0, 0.0, 20, 1, 20), found, 240)


@pytest.mark.parametrize("selected", [0.0, 1.0])
@pytest.mark.parametrize("best", [0.0, 1.0])
def test_the_verdict_tells_a_wrong_map_from_latents_that_do_not_carry_the_preference(selected, best):
    assert made(selected, best).verdict == CASES[selected > 0, best > 0]


def test_the_verdict_names_a_map_the_wrong_way_round_and_scores_without_order():
    assert made(-1.0, 1.0).verdict == f"{CASES[False, True]} {BACKWARDS}"
    assert made(1.0, 1.0, order=-1.0).verdict == f"{CASES[True, True]} {NO_ORDER}"


def test_correlations_and_means_are_those_of_the_measured_effects():
    check = made(1.0, 0.5)
    for name in ("map", "gradient"):
        one = check.correlations[name]
        assert one.pairs[0] == pytest.approx(1) and one.latents[0] == pytest.approx(1) and one.signs[0] == 1
    assert check.means["selected"].mean == pytest.approx(1.01, abs=0.05)
    assert check.gains["selected"].mean == pytest.approx(1.0, abs=0.06)
    assert {one.direction for one in check.by_latent["selected"]} == {1}
    few = latent_means([Effect(n, f"p{n}", 3, -1.0, 1.0, 1.0, 1.0, edited=True) for n in range(5)])
    assert not few[0].judged and few[0].direction == 0  # five prompts of one sign are no evidence at 5 %


def test_the_whole_check_on_a_tiny_model(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("llama"), triples[:14], sae_refs)
    check = causal_check(aligned, triples[14:], CausalSettings(triples=8, latents=3), every_latent=True)
    assert check.n_triples == 8 and check.margin.n == 8
    assert max(Counter(effect.triple for effect in check.effects["selected"]).values()) <= 3
    assert all(effect.expected > 0 for effect in check.effects["selected"])
    every = {(effect.triple, effect.latent): effect.measured for effect in check.all_effects}
    for effects in check.effects.values():
        for effect in effects:
            assert effect.measured == every.get((effect.triple, effect.latent), 0.0)
    again = causal_check(aligned, triples[14:], CausalSettings(triples=8, latents=3))
    assert again.effects.keys() == check.effects.keys() and again.verdict == check.verdict


def test_one_triple_is_too_few(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("llama"), triples, sae_refs)
    with pytest.raises(ValueError, match="at least 2 triples, got 1"):
        causal_check(aligned, triples[:1], CausalSettings())
    with pytest.raises(ValueError, match="at least 2 triples and 1 latent"):
        CausalSettings(triples=1)
