import dataclasses
import json

import pytest
import torch
from sae_lens.evals import ExplainedVarianceCalculator
from safetensors import SafetensorError
from torch.nn.functional import cosine_similarity, cross_entropy

from dspa.method import DSPA
from dspa.saes.finetune import FinetuneSettings, continue_training, finetune, save_finetuned, stream_tokens
from dspa.saes.quality import measure_quality, texts_of
from dspa.saes.sae import load_sae
from dspa.saes.training import Units, calibrate, check_trainable, to_training
from harness.compute import Meter
from harness.data.refs import ModelRef, SAERef
from harness.data.triples import load_triples
from harness.model.aligned import AlignedModel
from tests.conftest import D_MODEL, D_SAE, make_sae

KINDS = {
    "standard": {"architecture": "standard"},
    "jumprelu": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
    "topk": {"architecture": "topk"},
    "topk by decoder norm": {"architecture": "topk", "rescale_acts_by_decoder_norm": True},
    "jumprelu on normalised input": {"architecture": "jumprelu", "normalize_activations": "layer_norm"},
    "standard, bias not in the input": {"architecture": "standard", "apply_b_dec_to_input": False},
}
SMALL = FinetuneSettings(batch_size=64, lr=1e-3, held_out=0.3)


def sparse_sae(folder, **options):
    """An SAE of which some ten latents are active on `residual`, as threshold or bias decide."""
    sae = load_sae(SAERef(path=str(make_sae(folder, 2, seed=3, **options))))
    level = 2.0 if sae.sae.cfg.normalize_activations == "layer_norm" else 60.0
    for name, sign in (("threshold", 1), ("b_gate", -1)):
        if hasattr(sae.sae, name):
            getattr(sae.sae, name).fill_(sign * level)
    return sae


@pytest.fixture(params=KINDS, ids=list(KINDS))
def sae(request, tmp_path):
    return sparse_sae(tmp_path / "sae", **KINDS[request.param])


@pytest.fixture(scope="module")
def residual():
    """Tokens in units far from one, as released models have them."""
    return 30 * torch.randn(600, D_MODEL, generator=torch.Generator().manual_seed(0))


def endless(residual, batch_size=64):
    draw = torch.Generator().manual_seed(1)
    while True:
        yield residual[torch.randint(len(residual), (batch_size,), generator=draw)]


def l0(sae, residual):
    return float((sae.sae.encode(residual) > 0).sum(1).float().mean())


def error(sae, residual):
    return float((sae.sae.decode(sae.sae.encode(residual)) - residual).pow(2).sum(-1).mean())


def edit(folder, **metadata):
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= metadata
    (folder / "cfg.json").write_text(json.dumps(config))
    return SAERef(path=str(folder))


def test_no_step_gives_the_released_sae_bit_for_bit(sae, residual):
    same = continue_training(sae, residual, endless(residual), steps=0, settings=SMALL)
    assert same.identity == sae.identity
    assert torch.equal(same.sae.encode(residual), sae.sae.encode(residual))


def test_what_is_trained_computes_what_is_released_in_other_units(sae, residual):
    units = Units.of(sae, residual)
    training = to_training(sae, units)
    rebuilt = training.decode(training.encode(residual * units.data)) / units.data
    torch.testing.assert_close(rebuilt, sae.sae.decode(sae.sae.encode(residual)), rtol=1e-4, atol=1e-3)
    scaled = (residual * units.data).norm(dim=-1).mean() / D_MODEL**0.5
    assert 0.7 < scaled < 1.5, "one learning rate is meant to fit all SAEs"


def test_training_lowers_the_error_keeps_l0_and_leaves_every_latent_in_its_place(sae, residual):
    tuned = continue_training(sae, residual, endless(residual), steps=60, settings=SMALL)
    assert error(tuned, residual) < 0.9 * error(sae, residual)
    assert l0(tuned, residual) == pytest.approx(l0(sae, residual), rel=0.01)
    own = cosine_similarity(tuned.sae.W_dec, sae.sae.W_dec, dim=-1)
    others = cosine_similarity(tuned.sae.W_dec[:, None], sae.sae.W_dec[None], dim=-1)
    assert own.min() > 0.8
    assert torch.equal(others.argmax(1), torch.arange(D_SAE))
    kept = {k: v for k, v in tuned.sae.cfg.to_dict().items() if k != "metadata"}
    assert kept == {k: v for k, v in sae.sae.cfg.to_dict().items() if k != "metadata"}


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("wanted", [1_500, 9_000])
def test_calibration_wakes_exactly_as_many_latents_as_wanted(tmp_path, residual, kind, wanted):
    sae = sparse_sae(tmp_path / "sae", architecture=kind)
    units = Units.of(sae, residual)
    training, sample = to_training(sae, units), residual * units.data
    calibrate(training, sample, wanted)
    assert int((training.encode(sample) > 0).sum()) == wanted


def test_texts_hold_each_prompt_once_and_no_special_tokens(tiny_base, triples):
    base = tiny_base()
    one = triples[:3]
    got = torch.cat(list(stream_tokens(base, 2, texts_of(base, one), rows=4)))
    expected = []
    for triple in one:
        prompt, *answers = base.triple_ids(triple)
        for index, answer in enumerate(answers):
            ids = torch.tensor([[*prompt, *answer]])
            hidden = base.model(ids, output_hidden_states=True).hidden_states[3][0]
            first = 0 if index == 0 else len(prompt)
            counted = [i for i in range(first, ids.shape[1]) if int(ids[0, i]) not in base.chat.special_ids]
            expected.append(hidden[counted])
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_later_layers_do_not_run(tiny_base, triples):
    base, calls = tiny_base(), []
    handle = base.model.model.layers[3].register_forward_hook(lambda *_: calls.append(1))
    list(stream_tokens(base, 2, texts_of(base, triples[:2]), rows=4))
    handle.remove()
    assert calls == []


def test_quality_equals_a_text_by_text_computation(tiny_base, sae_refs, triples):
    base, sae = tiny_base(), load_sae(sae_refs[1])
    texts = texts_of(base, triples[:5])
    (got,) = measure_quality(base, [sae], texts, limit=None, rows=4)
    variance, active, tokens, losses = ExplainedVarianceCalculator(), 0, 0, torch.zeros(3)
    fired = torch.zeros(D_SAE, dtype=torch.bool)
    for text in texts:
        ids = torch.tensor([text.ids])
        counted = [i for i in range(text.start, len(text.ids)) if text.ids[i] not in base.chat.special_ids]
        predicting = [i for i in counted if i + 1 < len(text.ids)]
        x = base.model(ids, output_hidden_states=True).hidden_states[3][0][counted].detach()
        latents = sae.sae.encode(x)
        active, tokens = active + int((latents > 0).sum()), tokens + len(x)
        fired |= (latents > 0).any(0)
        variance.add_batch(sae.sae.decode(latents), x)
        for index, value in enumerate((None, sae.sae.decode(latents), torch.zeros_like(x))):

            def put(_module, _args, output, value=value, counted=counted):
                if value is not None:
                    (output[0] if isinstance(output, tuple) else output)[0, counted] = value

            handle = base.model.model.layers[2].register_forward_hook(put)
            with torch.no_grad():
                logits = base.model(ids).logits[0]
            handle.remove()
            losses[index] += cross_entropy(logits[predicting], ids[0][[i + 1 for i in predicting]], reduction="sum")
    assert got.tokens == tokens
    assert got.silent == frozenset((~fired).nonzero().flatten().tolist())
    assert got.l0 == pytest.approx(active / tokens)
    assert got.explained_variance == pytest.approx(variance.compute(), rel=1e-4)
    scale = (got.loss / losses[0]).item()
    assert [got.loss, got.loss_sae, got.loss_zero] == pytest.approx([scale * v for v in losses.tolist()], rel=1e-4)
    recovered = (losses[2] - losses[1]) / (losses[2] - losses[0])
    assert got.loss_recovered == pytest.approx(float(recovered), rel=1e-3)


def test_a_perfect_sae_recovers_the_whole_loss_and_an_empty_one_none(tiny_base, tmp_path, triples):
    base = tiny_base()
    perfect = load_sae(
        SAERef(path=str(make_sae(tmp_path / "a", 2, seed=0, architecture="standard", d_sae=2 * D_MODEL)))
    )
    empty = load_sae(SAERef(path=str(make_sae(tmp_path / "b", 2, seed=0, architecture="standard"))))
    eye = torch.eye(D_MODEL)
    values = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye]), "b_enc": 0, "b_dec": 0}
    for name, value in values.items():
        getattr(perfect.sae, name).copy_(value if torch.is_tensor(value) else torch.tensor(0.0))
        getattr(empty.sae, name).zero_()
    first, second = measure_quality(base, [perfect, empty], texts_of(base, triples[:4]), limit=None, rows=4)
    assert (first.loss_recovered, first.explained_variance) == pytest.approx((1, 1), abs=1e-5)
    assert second.loss_recovered == pytest.approx(0, abs=1e-6) and second.l0 == 0


def test_tokens_of_large_norm_are_left_out_where_the_sae_asks_for_it(tiny_base, sae_refs, tmp_path, triples):
    base, plain = tiny_base(), load_sae(sae_refs[1])
    norms = torch.cat(list(stream_tokens(base, 2, texts_of(base, triples), rows=8))).norm(dim=-1)
    limit = float(norms.quantile(0.7))
    (got,) = measure_quality(base, [plain], texts_of(base, triples), limit=limit, rows=8)
    assert got.tokens == int((norms <= limit).sum())
    strict = dataclasses.replace(plain, norm_multiple=1.05)
    result = finetune(base, strict, triples, SMALL, source="strict")
    everything = finetune(base, plain, triples, SMALL, source="plain")
    assert result.before.tokens < everything.before.tokens
    assert result.provenance["norm_filter"] == 1.05
    save_finetuned(result, tmp_path / "tuned")
    assert load_sae(SAERef(path=str(tmp_path / "tuned"))).norm_multiple == 1.05, "the folder says so itself"


def test_the_same_seed_gives_the_same_sae_and_another_one_another(tiny_base, sae_refs, triples):
    base, sae = tiny_base(), load_sae(sae_refs[1])
    torch.manual_seed(99)  # the state outside must not matter
    first = finetune(base, sae, triples, SMALL, source="s")
    torch.rand(3)
    after = torch.random.get_rng_state()
    second = finetune(base, sae, triples, SMALL, source="s")
    assert torch.equal(torch.random.get_rng_state(), after)
    assert first.sae.identity == second.sae.identity and first.after == second.after
    other = finetune(base, sae, triples, dataclasses.replace(SMALL, seed=1), source="s")
    assert other.sae.identity != first.sae.identity


def test_the_folder_is_an_sae_with_its_report_and_origin(tiny_base, tiny_folders, tmp_path, triples):
    base = tiny_base()
    ref = edit(make_sae(tmp_path / "released", 2, seed=3), neuronpedia_id="tiny/2-res", num_dead_features=7)
    result = finetune(base, load_sae(ref), triples, dataclasses.replace(SMALL, tokens=640), source="released")
    save_finetuned(result, tmp_path / "tuned")
    tuned = load_sae(SAERef(path=str(tmp_path / "tuned")))
    assert tuned.layer == 2 and tuned.identity == result.sae.identity
    metadata = json.loads((tmp_path / "tuned" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.2.hook_resid_post" and metadata["model_name"] == "tiny"
    assert "neuronpedia_id" not in metadata and "num_dead_features" not in metadata
    made = metadata["finetuned"]
    assert made["neuronpedia_id"] == "tiny/2-res"
    assert (made["source"], made["tokens"], made["steps"], made["seed"]) == ("released", 640, 10, 0)
    assert made["base"] == base.base.identity and made["triples"] + made["held_out_triples"] == len(triples)
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["before"]["tokens"] == report["after"]["tokens"] > 0
    assert report["after"]["l0"] == metadata["l0"] == result.after.l0
    with pytest.raises(ValueError, match="exists already"):
        save_finetuned(result, tmp_path / "tuned")

    early = SAERef(path=str(tiny_folders["input"]))
    method = DSPA(input_sae=early, output_sae=SAERef(path=str(tmp_path / "tuned")), k_prompt=4, k_diff=4)
    assert method.fit(base, triples[:8], meter=Meter(), seed=0).intervention is not None


def test_a_write_that_fails_leaves_nothing_at_its_place(tiny_base, sae_refs, tmp_path, triples, full_disk):
    result = finetune(tiny_base(), load_sae(sae_refs[1]), triples, SMALL, source="s")
    with full_disk(1000), pytest.raises((OSError, SafetensorError), match="File too large"):
        save_finetuned(result, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_what_cannot_be_trained_on_is_refused(tiny_base, tmp_path, sae_refs, triples):
    folder = make_sae(tmp_path / "gated", 2, seed=0, architecture="gated", normalize_activations="layer_norm")
    with pytest.raises(ValueError, match="auxiliary loss leaves the normalisation out"):
        check_trainable(load_sae(SAERef(path=str(folder))))
    base, sae = tiny_base(), load_sae(sae_refs[1])
    with pytest.raises(ValueError, match="1 triples leave"):
        finetune(base, sae, triples[:1], SMALL, source="s")
    with pytest.raises(ValueError, match=r"less than one batch of 9999; give more triples, or a smaller batch size"):
        finetune(base, sae, triples, dataclasses.replace(SMALL, batch_size=9999), source="s")
    for bad, message in (
        ({"tokens": 5}, "less than one batch"),
        ({"lr": 0.0}, "above 0"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"batch_size": 1}, "at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            FinetuneSettings(**bad)


@pytest.fixture
def command(tiny_folders, tmp_path, triples_file, call):
    """Runs `dspa-bench finetune-sae`; gives exit code and everything printed."""
    given = {
        "--sae": str(tiny_folders["output"]),
        "--base": str(tiny_folders["gemma2"]),
        "--triples": str(triples_file),
        "--out": str(tmp_path / "tuned"),
        "--batch-size": "64",
        "--held-out": "0.3",
    }

    def run(**changes):
        options = given | {"--" + k.replace("_", "-"): v for k, v in changes.items()}
        words = [word for key, value in options.items() if value is not None for word in (key, value)]
        code, out, err = call("finetune-sae", *words)
        return code, out + err

    return run


def test_the_command_prints_the_table_and_writes_the_folder(command, tmp_path):
    code, shown = command()
    assert code == 0, shown
    for word in ("L0", "explained variance", "loss recovered", "before", "after"):
        assert word in shown
    assert load_sae(SAERef(path=str(tmp_path / "tuned"))).layer == 2
    code, shown = command()
    assert code == 2 and "exists already" in shown


def test_the_command_refuses_bad_input_before_any_work(command, tmp_path):
    for changes, message in (
        ({"sae": None}, "either --sae FOLDER, or both --release and --id"),
        ({"release": "r"}, "either --sae FOLDER, or both --release and --id"),
        ({"sae": "/nowhere"}, "'/nowhere' has no cfg.json"),
        ({"base": "/nowhere"}, "'/nowhere' does not exist"),
        ({"triples": "/nowhere"}, "'/nowhere' does not exist"),
        ({"tokens": "3"}, "less than one batch"),
        ({"norm_filter": "0.5"}, "above 1"),
    ):
        code, shown = command(**changes)
        assert code == 2 and message in shown, shown
    assert not (tmp_path / "tuned").exists()


def test_real_text_is_described_better_at_the_same_l0(data_folder):
    base = AlignedModel.from_base(ModelRef(path=str(data_folder / "models/stories260K"), chat="hh"))
    sae = load_sae(SAERef(path=str(data_folder / "models/stories260K_sae/layer_1")))
    real = load_triples(data_folder / "preferences/pandalm.jsonl")[:60]
    fitting = [t for t in real if len(base.tokenizer.encode(str(t))) < base.base.max_length]
    result = finetune(base, sae, fitting[:40], FinetuneSettings(batch_size=256, held_out=0.2), source="layer_1")
    before, after = result.before, result.after
    assert after.explained_variance > before.explained_variance
    assert after.loss_recovered > before.loss_recovered > 0.9
    assert after.l0 == pytest.approx(before.l0, rel=0.05)
