"""The preference benchmark: log-likelihood margins of held-out triples, from exact token ids."""

import json
import math
from dataclasses import replace

import pytest
import torch

from baselines import CAA
from harness.benchmark import BENCHMARKS
from harness.compute import Meter
from harness.data.triples import Triple, conversation, load_triples
from harness.experiment.check import check_suite
from harness.experiment.suite import load_suite
from tasks.preference import Preference
from tests.toys import write_suite
from tests.unit.test_caa import ReferenceSteering


@pytest.fixture
def held_out(tmp_path, triples):
    return write(tmp_path / "held_out.jsonl", triples[:6])


def write(path, triples):
    rows = [{"prompt": list(t.prompt), "chosen": t.chosen, "rejected": t.rejected} for t in triples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(model, path, **options):
    return list(Preference(triples=path, **options).run(model))


def by_metric(records, name):
    return [r for r in records if r.metric == name]


@torch.no_grad()
def brute_loglikelihood(model, prompt, answer) -> float:
    logprobs = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_margins_equal_full_forwards_of_each_answer_with_its_end_of_turn(tiny_base, held_out, family):
    base = tiny_base(family)
    records = run(base, held_out, batch_size=5)
    assert [(r.item, r.metric) for r in records[:2]] == [("1", "preference_accuracy"), ("1", "preference_margin")]
    pairs = zip(by_metric(records, "preference_accuracy"), by_metric(records, "preference_margin"), strict=True)
    signs = set()
    for triple, (accuracy, margin) in zip(load_triples(held_out), pairs, strict=True):
        prompt, *answers = base.triple_ids(triple)
        ended = [[*answer, base.chat.end_id] for answer in answers]
        chosen, rejected = (brute_loglikelihood(base.model, prompt, answer) for answer in ended)
        assert margin.value == pytest.approx(chosen / len(ended[0]) - rejected / len(ended[1]), abs=1e-4)
        assert accuracy.value == 100.0 * (chosen > rejected)
        assert margin.raw["summed_margin"] == pytest.approx(chosen - rejected, abs=1e-4)
        assert margin.raw["tokens"] == [len(answer) for answer in ended]
        signs.add(accuracy.value)
    assert signs == {0.0, 100.0}


def test_swapping_the_answers_turns_every_margin_around(tiny_base, held_out, tmp_path):
    swapped = [replace(t, chosen=t.rejected, rejected=t.chosen) for t in load_triples(held_out)]
    one = run(tiny_base(), held_out)
    other = run(tiny_base(), write(tmp_path / "swapped.jsonl", swapped))
    for a, b in zip(by_metric(one, "preference_margin"), by_metric(other, "preference_margin"), strict=True):
        assert a.value == pytest.approx(-b.value, abs=1e-5)
    for a, b in zip(by_metric(one, "preference_accuracy"), by_metric(other, "preference_accuracy"), strict=True):
        assert a.value + b.value == 100.0


def test_steering_is_on_and_conditions_on_the_prompt_alone(tiny_base, triples, held_out):
    base = tiny_base("gemma2")
    aligned = CAA(layer=2, scale=3.0).fit(base, triples, meter=Meter(base.model), seed=0)
    reference = ReferenceSteering(aligned, aligned.intervention.tensors()["vector"])
    for record, triple in zip(
        by_metric(run(aligned, held_out), "preference_margin"), load_triples(held_out), strict=True
    ):
        prompt, *answers = base.triple_ids(triple)
        for answer, ours in zip(answers, record.raw["loglikelihoods"], strict=True):
            ids = [*answer, base.chat.end_id]
            logprobs = reference.logits(prompt, ids)[len(prompt) - 1 : -1].log_softmax(-1)
            assert ours == pytest.approx(float(logprobs.gather(1, torch.tensor(ids)[:, None]).sum()), abs=1e-4)


def test_an_instruction_in_front_is_part_of_the_prompt(tiny_base, held_out):
    plain, instructed = tiny_base(), tiny_base().derive(system_prompt="w1 w2 w3")
    assert run(plain, held_out)[0].raw["loglikelihoods"] != run(instructed, held_out)[0].raw["loglikelihoods"]


def test_values_do_not_depend_on_the_batch_size(tiny_base, held_out):
    alone, together = run(tiny_base(), held_out, batch_size=1), run(tiny_base(), held_out)
    assert [r.value for r in alone] == pytest.approx([r.value for r in together], abs=1e-5)


def test_a_prompts_triples_are_one_cluster_and_every_record_has_its_own_key(tiny_base, tmp_path):
    rows = [Triple(conversation(p), c, "w9") for p, c in (("w1", "w2"), ("w1", "w3"), ("w4", "w5"))]
    records = run(tiny_base(), write(tmp_path / "t.jsonl", rows))
    clusters = [r.cluster for r in by_metric(records, "preference_margin")]
    assert clusters[0] == clusters[1] != clusters[2]
    assert len({(r.metric, r.item) for r in records}) == len(records) == 6


def test_a_triple_that_does_not_fit_or_is_not_finite_is_an_error_without_a_value(tiny_base, tmp_path, monkeypatch):
    base = tiny_base()
    rows = [Triple(conversation("w1"), "w2", "w3"), Triple(conversation("w4"), " ".join(["w5"] * 300), "w6")]
    path = write(tmp_path / "t.jsonl", rows)
    records = {(r.item, r.metric): r for r in run(base, path)}
    assert len(records) == 4
    for name in ("preference_accuracy", "preference_margin"):
        assert records["1", name].value is not None
        assert "more than the context of 256" in records["2", name].error
    assert [r.error for r in run(base, write(path, rows[1:]))] == [records["2", "preference_margin"].error] * 2
    monkeypatch.setattr(type(base), "loglikelihood_tokens", lambda *_a, **_k: [(-math.inf, False), (-2.0, False)])
    assert [r.error for r in run(base, write(path, rows[:1]))] == [
        "log-likelihoods are not both finite: -inf and -2.0"
    ] * 2


def test_missing_empty_and_malformed_files_are_reported(tmp_path, held_out):
    Preference(triples=held_out).check()
    with pytest.raises(ValueError, match=r"triples file .* does not exist"):
        Preference(triples=tmp_path / "no.jsonl").check()
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="the triples file is empty"):
        Preference(triples=tmp_path / "empty.jsonl").check()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w1", "chosen": "w2"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: missing key 'rejected'"):
        Preference(triples=tmp_path / "bad.jsonl").check()


def test_prompts_are_the_user_turns(tmp_path):
    turns = [("user", "w1"), ("assistant", "w2"), ("user", "w3")]
    triple = Triple(tuple({"role": role, "content": text} for role, text in turns), "w4", "w5")
    assert Preference(triples=write(tmp_path / "t.jsonl", [triple])).prompts() == ["w1", "w3"]


def test_in_a_suite_it_needs_no_judge_and_refuses_prompts_that_were_trained_on(tmp_path, tiny_folders):
    def suite(held_out):
        write(tmp_path / "held_out.jsonl", held_out)
        entry = {"name": "preference", "triples": "held_out.jsonl"}
        path = write_suite(tmp_path, tiny_folders["gemma2"], benchmarks=[entry], judge=None)
        return load_suite(path)

    assert check_suite(suite([Triple(conversation("w30"), "w1", "w2")])).prompts == {"preference": 1}
    with pytest.raises(ValueError, match="1 evaluation prompts of preference also occur among the training prompts"):
        check_suite(suite([Triple(conversation("w1  W2"), "w5", "w6")]))


def test_its_metrics_say_how_they_are_to_be_read(held_out):
    assert BENCHMARKS["preference"] is Preference
    accuracy, margin = Preference(triples=held_out).metrics
    assert (accuracy.title, accuracy.unit, accuracy.digits) == ("Preference accuracy", "%", 1)
    assert (margin.title, margin.unit, margin.digits, margin.signed) == (
        "Preference margin", "nats per token", 3, True
    )  # fmt: skip
    assert (accuracy.least_span, margin.least_span) == (5.0, 0.05)
    assert margin.better(-0.1, -0.2)
