"""`perf steering` and `perf fit` on a model too small to time: what is compared computes the same, reports say so."""

import json
from itertools import product

import pytest
import torch
from transformers import Gemma2Config
from typer.testing import CliRunner

from dspa.diagnostics import edited_share
from dspa.method import DSPA
from dspa.perf.fit import FitOptions, draw_densities, measure_fit, measure_map
from dspa.perf.naive import error_term_hook, full_encode_hook, least_forwards, text_pairs, two_full_forwards
from dspa.perf.steering import (
    ALWAYS,
    ERROR_TERM,
    FULL,
    MAX,
    OWN,
    UNSTEERED,
    Decoding,
    SteeringOptions,
    measure_steering,
    selected_latents,
)
from dspa.perf.subject import Given, MadeUp
from dspa.perf.synthetic import ACTIVE_SHARE, SHAPES, Lengths, Writer, make_base, make_saes
from dspa.saes.sae import load_sae
from dspa.steering import DSPASteering
from harness.compute import Meter
from harness.files import content_hash
from harness.model.decoder import captured, find_decoder

STEPS, BATCH = 3, 4
LENGTHS = Lengths(prompt=12, answer=8)


@pytest.fixture(scope="module")
def base():
    return make_base(SHAPES["tiny"], dtype="float32", device="cpu", seed=0)


@pytest.fixture(scope="module")
def calibration(base):
    return Writer(base, seed=0).triples(60, LENGTHS)


@pytest.fixture(scope="module")
def saes(base, calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("perf")
    return make_saes(base, SHAPES["tiny"].layers, calibration, folder, ratio=0.5, seed=0)


@pytest.fixture(scope="module")
def fitted(base, saes):
    method = DSPA(input_sae=saes.input, output_sae=saes.output, batch_size=8, alpha=0.5)
    return method.fit(base, Writer(base, seed=1).triples(20, LENGTHS), meter=Meter(base.model), seed=0)


@pytest.fixture(scope="module")
def prompts(base):
    return [base.prompt_ids(triple.prompt) for triple in Writer(base, seed=2).triples(BATCH, LENGTHS)]


@pytest.fixture(scope="module")
def tokens(base):
    writer = Writer(base, seed=3)
    return torch.tensor([base.chat.response_ids(writer.continuation(2 * STEPS)) for _ in range(BATCH)])


def logits(aligned, prompts, tokens, hook=None):
    """Logits of two rounds, on different tokens."""
    return two_rounds(aligned, prompts, tokens, hook)[0]


def two_rounds(aligned, prompts, tokens, hook=None):
    """(logits of two rounds, on different tokens, and what was counted meanwhile)"""
    decoding = Decoding(aligned, prompts, tokens, steps=STEPS, hook=hook)
    rounds = []
    for _ in range(2):
        with decoding.opened() as work:
            rounds += work()
    decoding.close()
    return torch.stack(rounds), decoding.tally()


def test_a_synthetic_model_has_the_proportions_it_names():
    whole, quarter = SHAPES["gemma-2-2b"].config, SHAPES["quarter-gemma-2-2b"].config
    published = Gemma2Config().to_dict()  # its defaults are Gemma-2-2B
    assert whole == {key: published[key] for key in whole}
    narrower = {key for key in whole if quarter[key] != whole[key]}
    assert narrower == {"hidden_size", "intermediate_size", "head_dim", "query_pre_attn_scalar", "vocab_size"}
    assert {key: 4 * quarter[key] for key in narrower} == {key: published[key] for key in narrower}


def test_saes_have_the_size_asked_for_and_the_sparsity_on_what_they_were_calibrated_with(base, calibration, saes):
    parameters = sum(p.numel() for p in base.model.parameters())
    sae = load_sae(saes.output)
    assert (sae.sae.W_enc.numel() + sae.sae.W_dec.numel()) / parameters == pytest.approx(0.5, abs=0.01)
    assert saes.size_ratio == pytest.approx(0.5, abs=0.01)
    active, tokens = torch.zeros(saes.d_sae), 0
    seen = {}
    layer = find_decoder(base.model).layers[sae.layer]
    handle = layer.register_forward_hook(lambda _m, _a, output: seen.update(residual=output))
    for triple in calibration:
        prompt, chosen, _ = base.triple_ids(triple)
        with torch.no_grad():
            base.model(input_ids=torch.tensor([prompt + chosen]))
        active += (sae.sae.encode(seen["residual"][0, 1:]) > 0).sum(0)
        tokens += len(prompt + chosen) - 1
    handle.remove()
    assert float(active.mean() / tokens) == pytest.approx(ACTIVE_SHARE, rel=0.25)


def test_the_three_ways_to_edit_give_the_same_logits(fitted, saes, prompts, tokens):
    from sae_lens import SAE

    steering = fitted.intervention
    latents = selected_latents(fitted, prompts)
    assert len({tuple(row) for row in latents.tolist()}) > 1
    layer, alpha = steering.write_layers[0], steering.settings.alpha
    plain = fitted.derive(intervention=None)
    ours = logits(fitted, prompts, tokens)
    effect = (ours - logits(plain, prompts, tokens)).abs().max()
    assert effect > 1e-2
    for make in (full_encode_hook, error_term_hook):
        sae = SAE.load_from_disk(str(saes.output.path), device="cpu").requires_grad_(False)
        theirs = logits(plain, prompts, tokens, hook=(layer, make(sae, latents, alpha=alpha)))
        torch.testing.assert_close(theirs, ours, atol=1e-3 * float(effect), rtol=0)


@pytest.mark.parametrize("multiple", [None, 0.9])
def test_those_who_do_not_select_get_the_sets_that_steering_selects_norm_filter_included(
    fitted, prompts, tokens, multiple
):
    steering = fitted.intervention
    (layer,) = steering.read_layers
    with torch.no_grad(), captured(find_decoder(fitted.model), {layer}, stop=True) as residual:
        fitted.model(input_ids=torch.tensor([prompts[0]]))
    limit = None if multiple is None else multiple * float(residual[layer].norm(dim=-1).median())
    settings = steering.settings.model_copy(update={"norm_limits": (limit, limit)})
    filtered = fitted.derive(intervention=DSPASteering(steering.condition_map, settings))
    latents = selected_latents(filtered, prompts).tolist()
    assert latents == two_rounds(filtered, prompts, tokens)[1]["latents"]
    assert (latents == selected_latents(fitted, prompts).tolist()) == (multiple is None), "the filter matters"


def test_rounds_of_held_open_decodings_equal_one_forward_without_a_cache(base, prompts, tokens):
    rounds = logits(base, prompts, tokens)
    for row, prompt in enumerate(prompts):
        for start in (0, STEPS):
            ids = torch.tensor([prompt + tokens[row, start : start + STEPS].tolist()])
            with torch.no_grad():
                whole = base.model(input_ids=ids).logits[0, -STEPS:]
            torch.testing.assert_close(rounds[start : start + STEPS, row], whole, atol=1e-5, rtol=1e-4)


def test_the_worst_case_sae_makes_every_token_need_the_full_encode(fitted, saes, prompts, tokens):
    steering = fitted.intervention
    settings = steering.settings.model_copy(update={"output_sae": saes.always})
    always = fitted.derive(intervention=DSPASteering(steering.condition_map, settings))
    _, tally = two_rounds(always, prompts, tokens)
    assert edited_share([tally]) == pytest.approx(1, abs=0.05)


def test_perf_steering_prints_the_control_the_ratios_and_the_goals():
    options = SteeringOptions(MadeUp("tiny", (0.03,)), batches=(1, 3), rounds=2, warmup=0, steps=2)
    told = []
    first, second = measure_steering(options, tell=told.append)
    ours, theirs = (OWN, MAX, ALWAYS), (FULL, ERROR_TERM)
    assert [(line.what, line.against) for line in first.lines] == [
        ("unsteered (again)", UNSTEERED),
        *((name, UNSTEERED) for name in ours + theirs),
        *product(ours, theirs),
    ]
    assert "batch 3" in second.title
    assert f"{ALWAYS}: " in first.facts["tokens edited (and fully encoded by scale max)"]
    assert "not run" in first.facts["kernel launches and host synchronisations"]
    assert any(first.title in text for text in told)


def test_the_fits_compared_pass_the_layers_they_say(base, saes):
    triples = Writer(base, seed=4).triples(10, LENGTHS)
    pairs, loaded = text_pairs(base, triples, 4), (load_sae(saes.input), load_sae(saes.output))
    ids = [base.triple_ids(triple) for triple in triples]
    decoder = find_decoder(base.model)
    seen: dict[int, int] = dict.fromkeys(range(decoder.n_layers), 0)

    def count(layer: int):
        def hook(_module, _args, _output):
            seen[layer] += 1

        return decoder.layers[layer].register_forward_hook(hook)

    handles = [count(layer) for layer in seen]
    two_full_forwards(base, pairs, loaded)
    assert set(seen.values()) == {6}  # three batches of chosen and of rejected answers
    least_forwards(base, pairs, loaded)
    assert [seen[layer] - 6 for layer in sorted(seen)] == [6, 6, 6, 0]  # prompts, then answers; l_out is layer 2
    for handle in handles:
        handle.remove()
    assert sorted(len(one.prompt) for batch in pairs for one in batch) == sorted(len(i[0]) for i in ids)


def test_perf_fit_prints_the_control_the_goals_and_the_map():
    options = FitOptions(
        MadeUp("tiny", (0.5,)), rounds=2, warmup=0, triples=6, batch_size=3, map_triples=30, map_width=256
    )
    fit, of_map = measure_fit(options, tell=lambda _text: None)
    assert [line.goal and round(line.goal.at_least, 3) for line in fit.lines] == [
        None,
        0.87,
        2.0,
        None,
        0.87,
        2.0,
        None,
    ]
    assert {"DSPA.fit, stage features", "DSPA.fit, stage map"} <= {figure.what for figure in fit.figures}
    assert "30 triples at 256 latents" in of_map.title


def test_drawn_densities_are_as_sparse_as_they_say():
    prompt, difference = draw_densities(200, 4096, seed=0)
    assert float(prompt.mean()) == pytest.approx(ACTIVE_SHARE, rel=0.2)
    assert 0.02 < float((difference != 0).float().mean()) < 0.3
    assert float(difference.abs().max()) <= 1


def test_the_size_of_a_map_is_given_per_thousand_triples():
    sizes = [measure_map(n_triples=n, d_sae=256, seed=0, queries=1).figures[0].value for n in (100, 200)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.4)


def test_the_command_keeps_its_report_in_both_formats(tmp_path):
    from harness.cli.app import app

    asked = ["perf", "steering", "--shape", "tiny", "--ratio", "0.03", "--batch", "2", "--rounds", "2", "--steps", "1"]
    for name in ("report.json", "report.md"):
        result = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert "cpu" in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sections"][0]["lines"][0]["what"] == "unsteered (again)"
    assert "| speed of | relative to |" in (tmp_path / "report.md").read_text()


@pytest.fixture(scope="module")
def given(tiny_folders, triples, tmp_path_factory):
    """Options that name a model, its SAEs and texts."""
    texts = tmp_path_factory.mktemp("given") / "triples.jsonl"
    rows = [{"prompt": t.prompt[0]["content"], "chosen": t.chosen, "rejected": t.rejected} for t in triples]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    saes = {"input_sae": str(tiny_folders["input"]), "output_sae": str(tiny_folders["output"])}
    return {"base": str(tiny_folders["llama"]), **saes, "texts": str(texts)}


def test_perf_steering_measures_a_given_model_and_says_which(given, monkeypatch):
    monkeypatch.setattr("dspa.perf.steering._FIT", 16)
    options = SteeringOptions(Given(**given), batches=(1, 3), rounds=2, warmup=0, steps=2)
    first, second = measure_steering(options, tell=lambda _text: None)
    assert first.facts["model"].startswith(f"{given['base']}, identity {content_hash(given['base'])[:12]}, 0M")
    assert content_hash(given["texts"])[:12] in first.facts["model"]
    for name in ("input_sae", "output_sae"):
        assert f"{given[name]} ({content_hash(given[name])[:12]})" in first.facts["SAEs"]
    assert [line.what for line in first.lines[:5]] == ["unsteered (again)", OWN, MAX, FULL, ERROR_TERM]
    assert ALWAYS not in str(first), "nobody made such an SAE for a given model"
    assert "batch 3" in second.title


def test_perf_fit_measures_a_given_model_and_no_made_up_map(given, triples):
    options = FitOptions(Given(**given), rounds=2, warmup=0, triples=6, batch_size=3)
    (fit,) = measure_fit(options, tell=lambda _text: None)
    assert "layer 1: " in fit.facts["SAEs"]
    assert "of 4 layers" in fit.facts["SAEs"]
    figures = {figure.what: figure.value for figure in fit.figures}
    assert figures["DSPA.fit: executed"] > 0
    assert figures["DSPA.fit: peak memory of the process"] > 1


def test_a_given_subject_draws_different_prompts_and_decodes_their_own_answers(given, triples):
    work = Given(**given).opened(20, dtype="float32", device="cpu", seed=0)
    drawn = work.triples(12) + work.triples(8)
    assert len({triple.key for triple in drawn}) == 20
    assert {triple.key for triple in drawn} <= {triple.key for triple in triples}
    answer = work.base.chat.response_ids(drawn[0].chosen)
    assert work.continuation(drawn[0], len(answer) + 2) == answer + answer[:2]


@pytest.mark.parametrize("command", ["steering", "fit"])
def test_options_that_do_not_go_together_are_refused(given, command):
    from harness.cli.app import app

    def refused(**options):
        named = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        result = CliRunner().invoke(app, ["perf", command, *named])
        assert isinstance(result.exception, ValueError), result.output
        return str(result.exception)

    assert refused(base=given["base"], output_sae="x") == (
        "--base, --input-sae, --output-sae, --texts go together; missing: --input-sae, --texts"
    )
    assert refused(shape="tiny", ratio="0.1", base=given["base"]) == (
        "--shape, --ratio: only for a made-up model; leave out that, or what names a given one (--base)"
    )
    if command == "fit":
        assert "--prompt-tokens, --map-width: only" in refused(prompt_tokens="9", map_width="64", **given)
    assert "has 24 different prompts, but" in refused(**given, **{"triples" if command == "fit" else "batch": "30"})
    wrong = given | {"input_sae": given["output_sae"], "output_sae": given["input_sae"]}
    assert "before the input SAE's layer 2" in refused(**wrong)
    assert "does not exist" in refused(**given | {"base": "/nowhere/x.gguf"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steering", "--shape", "huge"], "unknown model shape 'huge'; known: quarter-gemma-2-2b"),
        (["steering", "--ratio", "0"], "ratios must be positive"),
        (["fit", "--out", "report.txt"], "must end in .json or .md"),
    ],
)
def test_bad_options_are_refused_before_any_work(arguments, message):
    from harness.cli.app import app

    result = CliRunner().invoke(app, ["perf", *arguments])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
