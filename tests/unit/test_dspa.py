"""DSPA end to end on tiny random models, against the brute-force reference of tests/reference."""

import json
import shutil

import pytest
import torch

from baselines import StaticSAE
from dspa.density import measure_densities
from dspa.diagnostics import edit_counts, edited_share_by_age
from dspa.method import DSPA
from dspa.saes.sae import load_sae
from harness.compute import Meter
from harness.data.refs import SAERef
from harness.data.triples import Triple, conversation
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from tests.conftest import make_sae
from tests.reference import ReferenceDSPA

PROMPTS = [conversation(text) for text in ("w1 w2 w3", "w30", "w7 w8 w9 w10 w11 w12 w13 w5 w5", "w20 w21")]
FAMILIES = ["llama", "gemma2", "gemma3", "qwen3"]


def fit(base: AlignedModel, triples, sae_refs, **params) -> AlignedModel:
    options = {"gate": "strict", "percentile": 50.0, "min_support": 1, "alpha": 1.5, "k_prompt": 8, "k_diff": 6}
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], **(options | params))
    return method.fit(base, triples, meter=Meter(base.model), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_equal_full_forwards_of_each_text_alone(tiny_base, triples, sae_refs, family):
    base, meter = tiny_base(family), Meter()
    triples = [*triples, Triple(conversation("w1 <eos> w2"), "w3 <eos> w4 <pad> w4", "w5 <bos>")]
    input_sae, output_sae = load_sae(sae_refs[0]), load_sae(sae_refs[1])
    with meter.stage("features"):
        ours = measure_densities(base, triples, input_sae=input_sae, output_sae=output_sae, meter=meter, batch_size=5)
    layers = find_decoder(base.model).layers

    def share(prompt: list[int], answer: list[int], sae, positions: list[int]) -> torch.Tensor:
        seen = {}
        hook = layers[sae.layer].register_forward_hook(lambda _m, _a, out: seen.update(h=out))
        base.model(input_ids=torch.tensor([prompt + answer]))
        hook.remove()
        return (sae.sae.encode(seen["h"][0, positions]) > 0).float().mean(0)

    for k, triple in enumerate(triples):
        prompt = base.prompt_ids(triple.prompt)
        counted = [p for p, token in enumerate(prompt) if token not in base.chat.special_ids]
        chosen, rejected = (base.chat.response_ids(text) for text in (triple.chosen, triple.rejected))
        torch.testing.assert_close(ours.prompt[k], share(prompt, [], input_sae, counted), atol=1e-6, rtol=0)
        rho = []
        for answer in (chosen, rejected):
            places = [len(prompt) + i for i, token in enumerate(answer) if token not in base.chat.special_ids]
            rho.append(share(prompt, answer, output_sae, places))
        torch.testing.assert_close(ours.difference[k], rho[0] - rho[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"gate": "paper"},
        {"mode": "both"},
        {"mode": "augment", "alpha": 0.5},
        {"scale": "own"},
        {"positions": "all"},
    ],
    ids=str,
)
def test_cached_batched_decoding_equals_full_reforwards_of_one_row(tiny_base, triples, sae_refs, family, params):
    aligned = fit(tiny_base(family), triples, sae_refs, **params)
    reference = ReferenceDSPA(aligned)
    completions = aligned.generate(PROMPTS, max_new_tokens=12)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.token_ids == reference.greedy(aligned.prompt_ids(prompt), 12)
    assert any(a.token_ids != b.token_ids for a, b in zip(
        completions, tiny_base(family).generate(PROMPTS, max_new_tokens=12), strict=True
    )), "the steering had no effect, so this test shows nothing"  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_conditions_on_the_context_and_steers_its_last_token_and_the_continuation(
    tiny_base, triples, sae_refs, family
):
    aligned = fit(tiny_base(family), triples, sae_refs)
    reference = ReferenceDSPA(aligned)
    contexts = [aligned.prompt_ids(p) for p in PROMPTS]
    requests = [(c, y) for c in contexts for y in ([9, 10, 11], [12], [9, 30])]
    for (context, answer), (value, greedy) in zip(requests, aligned.loglikelihood_tokens(requests), strict=True):
        logits = reference.logits(context, answer)[len(context) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(answer)[:, None]).sum()
        assert value == pytest.approx(float(expected), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == torch.tensor(answer)).all())


def test_alpha_zero_gives_bit_identical_logits(tiny_base, triples, sae_refs):
    base = tiny_base("gemma2")
    ids = torch.tensor([base.prompt_ids(PROMPTS[0])])
    for params in ({}, {"mode": "both", "positions": "all"}, {"scale": "own"}):
        aligned = fit(base, triples, sae_refs, alpha=0.0, **params)
        with aligned.steering(), torch.no_grad():
            steered = aligned.model(input_ids=ids).logits
        assert torch.equal(steered, base.model(input_ids=ids).logits)


@pytest.mark.parametrize("scale", ["max", "own"])
def test_a_token_without_an_active_selected_latent_is_bit_identical(tiny_base, triples, sae_refs, scale):
    aligned = fit(tiny_base("gemma2"), triples, sae_refs, scale=scale)
    steering, sae = aligned.intervention, load_sae(sae_refs[1])
    residual = torch.randn(4, 16, sae.d_model, generator=torch.Generator().manual_seed(0)) * 2
    index = torch.arange(6).expand(4, -1)
    state = {**sae.encoder.gather(index), "sign": -torch.ones(4, 6), "seen": torch.zeros(4, dtype=torch.long)}
    steered = torch.ones(4, 16, dtype=torch.bool)
    steered[1, 3:] = False
    tally = steering.tally()
    delta = steering.delta(2, residual, state, steered, tally=tally)
    untouched = ~(sae.encode(residual)[..., :6] > 0).any(-1) | ~steered
    assert 13 < int(untouched.sum()) < 64
    assert torch.equal((residual + delta)[untouched], residual[untouched])
    assert (delta[~untouched] != 0).any(1).all()
    edits = edit_counts([tally.read()], sae.d_sae)
    assert int(edits.sum()) == int((sae.encode(residual)[..., :6] > 0)[steered].sum())


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_row_depends_neither_on_batch_size_nor_on_neighbours(tiny_base, triples, sae_refs, temperature):
    for aligned in (tiny_base("gemma2"), fit(tiny_base("gemma2"), triples, sae_refs)):
        options = {"max_new_tokens": 10, "temperature": temperature, "seed": 5}
        together = aligned.generate(PROMPTS, batch_size=4, **options)
        alone = [aligned.generate([p], **options)[0] for p in PROMPTS]
        reordered = aligned.generate(PROMPTS[::-1], batch_size=3, **options)[::-1]
        assert [c.token_ids for c in together] == [c.token_ids for c in alone] == [c.token_ids for c in reordered]


def test_scores_depend_neither_on_batch_size_nor_on_neighbours(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("gemma2"), triples, sae_refs)
    requests = [(aligned.prompt_ids(p), list(y)) for p in PROMPTS for y in ((9, 10), (11,), (12, 13, 14))]
    together = aligned.loglikelihood_tokens(requests, batch_size=64)
    alone = [aligned.loglikelihood_tokens([r])[0] for r in requests]
    assert [g for _, g in together] == [g for _, g in alone]
    assert [v for v, _ in together] == pytest.approx([v for v, _ in alone], abs=1e-4)


def test_the_padding_side_does_not_matter(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("llama"), triples, sae_refs)
    rows = [aligned.prompt_ids(p) for p in PROMPTS]
    width = max(map(len, rows))
    outcomes = []
    for side in ("left", "right"):
        ids, mask = (torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long))
        for i, row in enumerate(rows):
            place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
            ids[i, place], mask[i, place] = torch.tensor(row), 1
        last = [width - 1 if side == "left" else len(row) - 1 for row in rows]
        with aligned.steering() as session, torch.no_grad():
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = aligned.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            assert session.steered_tokens.tolist() == [1] * len(rows)
        outcomes.append(logits[torch.arange(len(rows)), last])
    torch.testing.assert_close(*outcomes, atol=1e-4, rtol=1e-4)


def test_steered_tokens_equal_generated_tokens_also_for_rows_that_end_early(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("gemma2"), triples, sae_refs)
    prompts = [conversation(f"w{i} w{i + 1}") for i in range(30)]
    completions = aligned.generate(prompts, max_new_tokens=40, temperature=1.5, seed=1)
    assert any(c.finished for c in completions)
    assert len({len(c.token_ids) for c in completions}) > 2
    assert all(c.steered_tokens == len(c.token_ids) for c in completions)


def test_diagnostics_depend_neither_on_batch_size_nor_on_finished_neighbours(tiny_base, triples, sae_refs):
    prompts = [conversation(f"w{i} w{i + 1}") for i in range(12)]
    figures = []
    for batch_size in (1, 12):
        aligned = fit(tiny_base("gemma2"), triples, sae_refs)
        options = {"max_new_tokens": 30, "temperature": 1.5, "seed": 1, "batch_size": batch_size}
        tallies = [batch.tally for batch in aligned.generate_batches(prompts, **options)]
        assert len(tallies) == 12 // batch_size
        figures.append(aligned.intervention.figures(tallies))
    assert figures[0] == pytest.approx(figures[1])


def test_edits_are_counted_by_latent_and_by_place_in_the_answer(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("gemma2"), triples, sae_refs)
    batches = list(aligned.generate_batches(PROMPTS, max_new_tokens=11, batch_size=2))
    tallies = json.loads(json.dumps([batch.tally for batch in batches]))
    edits, figures = edit_counts(tallies, load_sae(sae_refs[1]).d_sae), aligned.intervention.figures(tallies)
    lengths = [len(c.token_ids) for batch in batches for c in batch.completions]
    tokens = {first: sum(min(max(n - first + 1, 0), first) for n in lengths) for first in (1, 2, 4, 8)}
    shares = edited_share_by_age(tallies)
    assert [(first, last) for first, last, _ in shares] == [(1, 1), (2, 3), (4, 7), (8, 15)]
    edited = sum(tokens[first] * share for first, _, share in shares)
    assert edited == pytest.approx(figures["edited_share"] * sum(lengths))
    assert int(edits.sum()) >= edited > 0
    assert figures["edited_latents"] == int((edits > 0).sum())


def test_a_triple_that_does_not_fit_the_context_is_refused(tiny_base, triples, sae_refs):
    long = Triple(conversation("w1"), " ".join(["w2"] * 300), "w3")
    with pytest.raises(ValueError, match="has 306 tokens, more than the context of 256"):
        fit(tiny_base("gemma2"), [*triples, long], sae_refs)


def test_the_selected_sets_depend_on_the_prompt_more_under_the_strict_gate(tiny_base, sae_refs):
    likes = [Triple(conversation(f"w1 w{i}"), "w20 w21 w22", "w30 w31 w32") for i in range(2, 12)]
    hates = [Triple(conversation(f"w14 w{i}"), "w30 w31 w32", "w20 w21 w22") for i in range(2, 12)]
    jaccard = {}
    for gate in ("paper", "strict"):
        aligned = fit(tiny_base("gemma2"), likes + hates, sae_refs, gate=gate, percentile=80.0)
        (batch,) = aligned.generate_batches([t.prompt for t in likes[:4] + hates[:4]], max_new_tokens=2)
        jaccard[gate] = aligned.intervention.figures([batch.tally])["jaccard"]
    assert jaccard["strict"] < jaccard["paper"]


def test_swapping_chosen_and_rejected_swaps_ablation_and_augmentation(tiny_base, triples, sae_refs):
    swapped = [Triple(t.prompt, t.rejected, t.chosen) for t in triples]
    one, other = (fit(tiny_base("gemma2"), ts, sae_refs, mode="both") for ts in (triples, swapped))
    prompt = tiny_base("gemma2").prompt_ids(PROMPTS[2])
    assert ReferenceDSPA(one).sets(prompt) == ReferenceDSPA(other).sets(prompt)[::-1]


def test_artifacts_come_back_with_the_same_fingerprint_and_answers(tiny_base, triples, sae_refs, tmp_path):
    aligned = fit(tiny_base("gemma2"), triples, sae_refs)
    aligned.save(tmp_path / "artifact")
    loaded = AlignedModel.load(tmp_path / "artifact")
    assert loaded.fingerprint == aligned.fingerprint
    assert loaded.generate(PROMPTS, max_new_tokens=8) == aligned.generate(PROMPTS, max_new_tokens=8)
    assert aligned.fingerprint != tiny_base("gemma2").fingerprint
    assert aligned.fingerprint != fit(tiny_base("gemma2"), triples, sae_refs, alpha=1.4).fingerprint


def test_the_fingerprint_knows_saes_by_content_and_not_by_place(tiny_base, triples, sae_refs, tmp_path):
    moved = tuple(SAERef(path=str(shutil.copytree(str(ref.path), tmp_path / str(i)))) for i, ref in enumerate(sae_refs))
    original = fit(tiny_base("gemma2"), triples, sae_refs)
    assert fit(tiny_base("gemma2"), triples, moved).fingerprint == original.fingerprint
    other = make_sae(tmp_path / "other", 2, seed=9)
    assert fit(tiny_base("gemma2"), triples, (sae_refs[0], SAERef(path=str(other)))).fingerprint != original.fingerprint


def test_the_static_sets_are_the_same_for_all_prompts_and_its_control_edits_active_latents_only(
    tiny_base, triples, sae_refs
):
    base = tiny_base("gemma2")
    plain, control = (
        StaticSAE(sae=sae_refs[1], k_diff=6, active_only=active).fit(base, triples, meter=Meter(base.model), seed=0)
        for active in (False, True)
    )
    sae = load_sae(sae_refs[1])
    residual = torch.randn(32, sae.d_model, generator=torch.Generator().manual_seed(1))
    encoded = sae.encode(residual)
    latents, sign = control.intervention.tensors()["latents"], control.intervention.tensors()["sign"]
    steered = torch.ones(2, 16, dtype=torch.bool)
    steered[0, 0] = False
    moved = control.intervention.delta(2, residual.view(2, 16, -1), {}, steered).flatten(0, 1)
    assert not moved[0].any()
    assert torch.equal((moved != 0).any(1)[1:], (encoded[1:, latents] > 0).any(1))
    everything = plain.intervention.delta(2, residual.view(2, 16, -1), {}, steered | True).flatten(0, 1)
    expected = torch.zeros_like(residual)
    for j, direction in zip(latents.tolist(), sign.tolist(), strict=True):
        f = encoded[:, j]
        target = (f + direction * 0.5 * encoded.max(1).values).clamp(min=0)
        expected += (target - f)[:, None] * sae.sae.W_dec[j]
    torch.testing.assert_close(everything, expected, atol=1e-5, rtol=1e-4)
