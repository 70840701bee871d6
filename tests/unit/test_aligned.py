import json
import shutil
from collections import Counter

import pytest
import torch

from baselines import DPO, Prompt
from harness.compute import Meter
from harness.data.refs import ModelRef
from harness.data.triples import Triple, conversation
from harness.model.aligned import AlignedModel
from harness.model.generation import GumbelNoise

PROMPTS = [conversation(text) for text in ("w1 w2 w3", "w30", "w7 w8 w9")]


def test_unsteered_greedy_generation_equals_transformers_own(tiny_base):
    base = tiny_base("llama")
    for completion, prompt in zip(base.generate(PROMPTS, max_new_tokens=9), PROMPTS, strict=True):
        ids = torch.tensor([base.prompt_ids(prompt)])
        stop = list(base.chat.stop_ids)
        expected = base.model.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=stop, pad_token_id=0)
        assert completion.token_ids == tuple(expected[0, ids.shape[1] :].tolist())
        assert completion.steered_tokens == 0


def test_unsteered_scores_equal_a_plain_forward_per_request(tiny_base):
    base = tiny_base("gemma2")
    requests = [(base.prompt_ids(p), y) for p in PROMPTS for y in ([9, 10, 11], [12], [9])]
    for (context, answer), (value, greedy) in zip(requests, base.loglikelihood_tokens(requests), strict=True):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        picked = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        assert value == pytest.approx(float(picked.sum()), abs=1e-4)
        assert greedy == (logits.argmax(-1).tolist() == answer)


def test_gumbel_noise_draws_from_the_softmax_at_the_temperature():
    scores, temperature, n = torch.tensor([2.0, 1.0, 0.0, -1.0]), 0.7, 20_000
    sampler = GumbelNoise([temperature], [0], torch.device("cpu"))
    empty = torch.zeros(1, 0, dtype=torch.long)
    drawn = Counter(int(sampler(empty, scores[None])[0].argmax()) for _ in range(n))
    expected = (scores / temperature).softmax(0)
    for token, share in enumerate(expected.tolist()):
        assert drawn[token] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_a_models_own_generation_config_changes_nothing(tiny_folders, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "model")
    own = {"use_cache": False, "min_new_tokens": 9, "no_repeat_ngram_size": 1, "cache_implementation": "static"}
    (folder / "generation_config.json").write_text(json.dumps(own))
    answers = AlignedModel.from_base(ModelRef(path=str(folder))).generate(PROMPTS, max_new_tokens=9)
    assert answers == tiny_base("llama").generate(PROMPTS, max_new_tokens=9)


def test_the_fingerprint_sees_every_file_of_the_base_and_the_scaling_of_an_adapter(tiny_folders, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_folders["llama"], tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    assert AlignedModel.from_base(ModelRef(path=str(folder))).fingerprint != tiny_base("llama").fingerprint
    base = tiny_base("llama")
    pair = Triple(conversation("w1"), "w2", "w3")
    adapters = [
        DPO(tuning="lora", lora_alpha=alpha, learning_rate=1e-30).fit(base, [pair], meter=Meter(base.model), seed=0)
        for alpha in (16, 400)
    ]
    assert adapters[0].fingerprint != adapters[1].fingerprint


def test_seeds_and_temperatures_are_each_rows_own(tiny_base):
    base = tiny_base("llama")
    mixed = base.generate(PROMPTS, max_new_tokens=12, temperature=[0.0, 1.5, 0.0], seed=3)
    greedy = base.generate(PROMPTS, max_new_tokens=12)
    assert (mixed[0], mixed[2]) == (greedy[0], greedy[2])
    assert mixed[1].token_ids != greedy[1].token_ids
    assert mixed[1] != base.generate(PROMPTS, max_new_tokens=12, temperature=1.5, seed=4)[1]


def test_a_prompt_without_room_is_a_failed_completion_and_the_others_are_answered(tiny_base):
    base = tiny_base("llama")
    long = conversation(" ".join(["w1"] * 260))
    answers = base.generate([PROMPTS[0], long], max_new_tokens=4)
    assert answers[0].error is None
    assert "264 tokens + 4 new ones exceed the context of 256" in str(answers[1].error)
    with pytest.raises(ValueError, match="exceed the context"):
        base.loglikelihood_tokens([([9] * 256, [9, 9])])


def test_bad_requests_are_refused(tiny_base):
    base = tiny_base("llama")
    with pytest.raises(ValueError, match="2 temperatures for 3"):
        base.generate(PROMPTS, max_new_tokens=4, temperature=[0.0, 0.0])
    with pytest.raises(ValueError, match="max_new_tokens"):
        base.generate(PROMPTS, max_new_tokens=0)
    with pytest.raises(ValueError, match="non-empty"):
        base.loglikelihood([("w1", "")])


def test_text_pairs_are_scored_at_the_tokens_after_the_context(tiny_base):
    base = tiny_base("llama")
    encode = base.tokenizer.encode
    expected = base.loglikelihood_tokens([(encode("w1 w2"), encode("w3 w4", add_special_tokens=False))])
    assert base.loglikelihood([("w1 w2", " w3 w4")]) == expected
    assert base.loglikelihood([("w1 w2 ", "w3 w4")]) == expected


def test_the_prompt_method_adds_a_system_turn(tiny_base):
    base = tiny_base("llama")
    prompted = Prompt(instruction="w39").fit(base, [], meter=Meter(base.model), seed=0)
    words = base.tokenizer.convert_ids_to_tokens(prompted.prompt_ids(PROMPTS[1]))
    assert words == ["<bos>", "sys", "w39", "end", "usr", "w30", "end", "ast"]
    assert prompted.fingerprint != base.fingerprint


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_dpo_prefers_the_chosen_answers_and_leaves_the_base_alone(tiny_base, triples, tmp_path, tuning):
    base, meter = tiny_base("llama"), Meter()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    meter = Meter(base.model)
    method = DPO(tuning=tuning, epochs=6, learning_rate=3e-3, batch_size=8)
    aligned = method.fit(base, triples, meter=meter, seed=0)

    def margins(model: AlignedModel) -> list[float]:
        context = [model.prompt_ids(t.prompt) for t in triples]
        answers = [(model.chat.response_ids(t.chosen), model.chat.response_ids(t.rejected)) for t in triples]
        good = model.loglikelihood_tokens([(c, a) for c, (a, _) in zip(context, answers, strict=True)])
        bad = model.loglikelihood_tokens([(c, b) for c, (_, b) in zip(context, answers, strict=True)])
        return [g - b for (g, _), (b, _) in zip(good, bad, strict=True)]

    gains = [after - start for after, start in zip(margins(aligned), margins(base), strict=True)]
    assert sum(gain > 0 for gain in gains) > 0.9 * len(gains)
    assert all(torch.equal(before[k], v) for k, v in base.model.state_dict().items())
    assert "forward" not in vars(base.model)
    bill = meter.bill(method="dpo", n_triples=len(triples))
    assert bill.optimiser_steps == 18
    total = sum(p.numel() for p in base.model.parameters())
    assert bill.train_params == total if tuning == "full" else 0 < bill.train_params < total
    assert bill.executed_flops > 0

    aligned.save(tmp_path / "artifact")
    loaded = AlignedModel.load(tmp_path / "artifact")
    assert loaded.fingerprint == aligned.fingerprint
    assert loaded.generate(PROMPTS, max_new_tokens=6) == aligned.generate(PROMPTS, max_new_tokens=6)
    again = method.fit(base, triples, meter=Meter(base.model), seed=0)
    assert again.fingerprint == aligned.fingerprint
    other = method.fit(base, triples, meter=Meter(base.model), seed=1)
    assert other.fingerprint != aligned.fingerprint


def test_dpo_refuses_a_triple_that_does_not_fit_the_context(tiny_base):
    base = tiny_base("llama")
    long = Triple(conversation("w1"), " ".join(["w2"] * 300), "w3")
    with pytest.raises(ValueError, match=r"has 306 tokens, more than the context of 256"):
        DPO().fit(base, [long], meter=Meter(base.model), seed=0)


def test_artifacts_are_never_overwritten_and_changed_ones_are_refused(tiny_base, tmp_path):
    base = tiny_base("llama")
    base.save(tmp_path / "artifact")
    with pytest.raises(ValueError, match="exists already"):
        base.save(tmp_path / "artifact")
    with pytest.raises(ValueError, match=r"made on base .* but the base given has"):
        AlignedModel.load(tmp_path / "artifact", base=tiny_base("gemma2").base)
    file = tmp_path / "artifact" / "aligned.json"
    description = json.loads(file.read_text())
    for key, value, message in [
        ("schema_version", 99, "schema version 99"),
        ("system_prompt", "be nice", "do not match the fingerprint"),
    ]:
        file.write_text(json.dumps(description | {key: value}))
        with pytest.raises(ValueError, match=message):
            AlignedModel.load(tmp_path / "artifact")
    with pytest.raises(ValueError, match=r"no aligned\.json"):
        AlignedModel.load(tmp_path)


def test_a_base_is_named_by_folder_or_by_public_name():
    with pytest.raises(ValueError, match="exactly one"):
        ModelRef()
    with pytest.raises(ValueError, match="exactly one"):
        ModelRef(path="a", id="b")
    with pytest.raises(ValueError, match="identified by the hash"):
        ModelRef(path="a", revision="main")
    with pytest.raises(ValueError, match=r"'/nowhere' has no config\.json"):
        AlignedModel.from_base(ModelRef(path="/nowhere"))
