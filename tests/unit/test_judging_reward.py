"""The reward-model judge: trained by TRL on our token ids, measured on prompts it never saw."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from harness.data.refs import ModelRef
from harness.data.triples import Message, Triple, conversation, load_triples, split_by_prompt
from harness.judging import Answer, Comparison, Rating
from harness.judging.reward import Calibration, RewardJudge
from harness.judging.reward_model import AnswerFormat, RewardModel

QUICK = {"epochs": 5, "learning_rate": 3e-3, "held_out": 0.4}


@pytest.fixture(scope="module")
def triples_file(tmp_path_factory) -> Path:
    """48 triples: good answers are made of w0..w9, bad ones of w30..w39."""
    draw = random.Random(4)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{draw.randint(low, high)}" for _ in range(draw.randint(3, 7)))

    rows = [{"prompt": words(10, 29), "chosen": words(0, 9), "rejected": words(30, 39)} for _ in range(48)]
    path = tmp_path_factory.mktemp("data") / "triples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def settings(tiny_folders, triples_file) -> dict:
    return {"base": {"path": str(tiny_folders["llama"])}, "triples": triples_file, "training": QUICK}


@pytest.fixture(scope="module")
def judge(settings, tmp_path_factory) -> RewardJudge:
    """Trained once for this module."""
    made = RewardJudge(**settings)
    made.check()
    made = made.at(tmp_path_factory.mktemp("judging"))
    made.prepare()
    return made


def rated(prompt: str, answer: str) -> Rating:
    return Rating((*conversation(prompt), Message(role="assistant", content=answer)))


def folder_of(judge: RewardJudge) -> Path:
    assert judge._folder is not None
    return judge._folder


def test_it_learns_what_it_was_shown_and_says_how_well_on_prompts_it_never_saw(judge, triples_file):
    kept = json.loads((folder_of(judge) / "reward.json").read_text())["calibration"]
    trained, held_out = split_by_prompt(load_triples(triples_file), 0.4, 0)
    assert (kept["trained_on"], kept["triples"]) == (len(trained), len(held_out))
    assert kept["low"] < kept["accuracy"] <= kept["high"] + 1e-9
    assert kept["accuracy"] > 90
    assert f"{kept['accuracy']:.1f} %" in judge.statement and f"On {len(held_out)} other triples" in judge.statement
    assert judge.label == folder_of(judge).name


def test_its_accuracy_and_scale_are_those_of_a_plain_forward_on_the_held_out_triples(judge, settings, triples_file):
    _, held_out = split_by_prompt(load_triples(triples_file), 0.4, 0)
    model = AutoModelForSequenceClassification.from_pretrained(folder_of(judge)).eval()
    chat = AnswerFormat.of(ModelRef(**settings["base"])).chat

    def score(triple: Triple, answer: str) -> float:
        ids = [*chat.prompt_ids(triple.prompt), *chat.response_ids(answer), chat.end_id]
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    pairs = [(score(t, t.chosen), score(t, t.rejected)) for t in held_out]
    assert judge.calibration.accuracy == pytest.approx(100 * sum(a > b for a, b in pairs) / len(pairs))
    assert judge.calibration.scores == pytest.approx(sorted(s for pair in pairs for s in pair), abs=1e-5)
    triple = held_out[0]
    (verdict,) = judge.compare([Comparison.of(triple.prompt, triple.chosen, triple.rejected)])
    probability = 1 / (1 + math.exp(pairs[0][1] - pairs[0][0]))
    assert f"probability {probability:.4f}" in verdict.raw


def test_the_same_settings_give_the_same_weights_and_a_folder_that_is_there_is_used(judge, settings, tmp_path):
    again = RewardJudge(**settings).at(tmp_path)
    again.prepare()
    weights = folder_of(again) / "model.safetensors"
    assert weights.read_bytes() == (folder_of(judge) / "model.safetensors").read_bytes()
    assert again.calibration == judge.calibration
    before = weights.stat().st_mtime_ns
    RewardJudge(**settings).at(tmp_path).prepare()
    assert weights.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [again.label], "nothing half-made is left"


def test_other_settings_have_another_folder_but_how_it_is_run_has_not(settings, judge):
    label = judge.label
    assert RewardJudge(**settings, score_batch_size=1, tie=0.2).label == label
    assert RewardJudge(**(settings | {"training": {**QUICK, "seed": 1}})).label != label
    assert RewardJudge.operational == {"score_batch_size", "device", "too_long"}


def test_of_two_answers_the_better_one_wins_in_either_position_and_equal_ones_tie(judge):
    pair = Comparison.of(conversation("w11 w12"), "w1 w2 w3", "w31 w32 w33")
    same = Comparison.of(conversation("w11 w12"), "w1 w2", "w1 w2")
    assert [v.value for v in judge.compare([pair, pair.swapped, same])] == [1.0, 2.0, 1.5]
    undecided = judge.model_copy(update={"tie": 0.4999999})
    assert [v.value for v in undecided.compare([pair])] == [1.5], "the tie rule is on the probability"


def test_a_rating_is_where_the_score_stands_among_those_of_the_held_out_answers(judge):
    good, bad = judge.rate([rated("w11 w12", "w1 w2 w3"), rated("w11 w12", "w31 w32 w33")])
    assert 1 <= bad.value < 5.5 < good.value <= 10
    calibration = Calibration(50, 0, 100, 5, 5, 9, (-2.0, 0.0, 0.0, 4.0))
    shares = [calibration.share_below(x) for x in (-9, -2, -1, 0, 2, 4, 9)]
    assert shares == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_the_earlier_turns_are_part_of_what_is_scored(judge):
    def second_turn(first_answer: str) -> Rating:
        turns = [("user", "w11"), ("assistant", first_answer), ("user", "w12"), ("assistant", "w1 w2")]
        return Rating(tuple(Message(role=role, content=text) for role, text in turns))

    a, b = judge.rate([second_turn("w1"), second_turn("w31")])
    assert a.raw != b.raw


def test_verdicts_do_not_depend_on_the_batch(judge):
    requests = [rated("w11 " * n, f"w{n} w2") for n in range(1, 12)]
    alone = [judge.model_copy(update={"score_batch_size": 1}).rate([request])[0] for request in requests]
    together = judge.rate(requests)
    assert [v.value for v in together] == pytest.approx([v.value for v in alone], abs=1e-4)


def test_what_does_not_fit_is_a_failure_and_the_others_have_their_verdicts(judge):
    long, short = rated("w11 " * 300, "w1"), rated("w11", "w1")
    failed, fine = judge.rate([long, short])
    assert failed.value is None and "more than the reward model's context of 256" in (failed.error or "")
    assert fine.value is not None
    (verdict,) = judge.compare([Comparison(long.conversation, short.conversation)])
    assert verdict.value is None and "context" in (verdict.error or "")


def test_a_score_that_is_no_finite_number_is_a_failure_and_never_a_verdict(judge, triples_file, tmp_path, monkeypatch):
    monkeypatch.setattr(RewardModel, "scores", lambda _self, rows, *, batch_size: [float("nan")] * len(rows))
    pair = Comparison.of(conversation("w11"), "w1", "w31")
    for verdict in judge.rate([rated("w11", "w1")]) + judge.compare([pair]):
        assert verdict.value is None and verdict.error == "its score is nan"
    given = RewardJudge(model={"path": str(folder_of(judge))}, triples=triples_file).at(tmp_path)
    with pytest.raises(ValueError, match="no finite numbers"):
        given.prepare()
    assert not folder_of(given).exists()


def test_harm_and_refusal_are_failures_and_never_made_up(judge):
    answers = [Answer(conversation("w11"), "w1")] * 2
    assert [v.value for v in judge.harm(answers) + judge.refusal(answers)] == [None] * 4
    assert all("cannot say" in (v.error or "") for v in judge.harm(answers) + judge.refusal(answers))
    assert judge.verbs == {"rate", "compare"}


def test_lora_gives_a_model_of_its_own_that_another_judge_can_take_as_it_is(settings, triples_file, tmp_path):
    lora = RewardJudge(**(settings | {"training": {**QUICK, "tuning": "lora", "learning_rate": 1e-2}})).at(tmp_path)
    lora.prepare()
    assert lora.calibration.accuracy > 90
    given = RewardJudge(model={"path": str(folder_of(lora))}, triples=triples_file)
    given.check()
    given = given.at(tmp_path)
    given.prepare()
    assert (given.calibration.trained_on, given.calibration.triples) == (0, 48)
    assert "taken as it is" in given.statement
    pair = Comparison.of(conversation("w11 w12"), "w1 w2 w3", "w31 w32 w33")
    assert given.compare([pair])[0].raw == lora.compare([pair])[0].raw


def test_scores_of_equal_rows_are_computed_once_and_come_back_in_order(judge):
    scorer = RewardModel(ModelRef(path=str(folder_of(judge))))
    passed = []
    scorer.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: passed.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    a, b = [1, 9, 10, 7], [1, 12, 7]
    scores = scorer.scores([a, b, a, a], batch_size=8)
    assert sum(passed) == 2
    assert scores[0] == scores[2] == scores[3] != scores[1]


def test_accuracy_counts_equal_scores_half_and_its_interval_rests_on_prompts():
    triples = [Triple(conversation(f"q{i // 2}"), "a", "b") for i in range(8)]
    calibration = Calibration.of(triples, [1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1], trained_on=3)
    assert calibration.accuracy == pytest.approx(100 * 6.5 / 8)
    p, n, z = 6.5 / 8, 4, 1.959963984540054
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert (calibration.low, calibration.high) == pytest.approx((100 * (middle - half), 100 * (middle + half)))
    assert calibration.prompts == 4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"base": None}, "exactly one of `base`"),
        ({"model": {"path": "x"}}, "exactly one of `base`"),
        ({"base": None, "model": {"path": "x"}}, "`training` belongs to `base`"),
        ({"tie": 0.5}, "less than 0.5"),
        ({"training": {"epochs": 0}}, "greater than 0"),
        ({"training": {"epoch": 1}}, "Extra inputs"),
        ({"surprise": 1}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        RewardJudge(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"triples": "nothing.jsonl"}, "does not exist"),
        ({"base": {"path": "nothing"}}, "no config.json"),
        ({"training": {"held_out": 0.02}}, "at least 10 must be held out"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_files_and_models_that_cannot_serve_are_refused_before_any_work(settings, changes, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        RewardJudge(**(settings | changes)).check()


def test_a_language_model_is_no_reward_model(tiny_folders, triples_file):
    judge = RewardJudge(model={"path": str(tiny_folders["llama"])}, triples=triples_file)
    with pytest.raises(ValueError, match="is no reward model"):
        judge.check()


def test_a_triple_that_does_not_fit_is_refused_and_not_cut(settings, tmp_path):
    long = tmp_path / "long.jsonl"
    rows = [{"prompt": f"w{i} w1", "chosen": "w1 " * (300 if i == 20 else 1), "rejected": "w2"} for i in range(39)]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = r"long\.jsonl: 1 of 39 triples do not fit the reward model's context of 256 tokens: line 21; the longest"
    with pytest.raises(ValueError, match=f"{where} .*; leave them out with `too_long: skip`"):
        RewardJudge(**(settings | {"triples": long})).check()
    skipping = RewardJudge(**(settings | {"triples": long, "too_long": "skip"}))
    skipping.check()
    assert sum(map(len, skipping._parts)) == 38
    assert "line 21" in skipping.warnings[0] and "are left out (too_long: skip)" in skipping.warnings[0]


def test_one_that_may_be_guessing_is_warned_of(judge, tmp_path):
    assert judge.warnings == ()
    guessing = judge.model_copy()
    guessing._folder = tmp_path
    kept = json.loads((folder_of(judge) / "reward.json").read_text())
    kept["calibration"] |= {"accuracy": 46.4, "low": 28.4, "high": 65.5}
    (tmp_path / "reward.json").write_text(json.dumps(kept))
    guessing.__dict__.pop("calibration", None)
    (warning,) = guessing.warnings
    assert warning.startswith("Warning: this reward model is no better than chance as far as")
    assert "46.4 % [28.4, 65.5]" in warning and guessing.statement.endswith(warning)


def test_before_it_is_prepared_it_says_so_and_a_damaged_folder_is_named(settings, judge, tmp_path):
    fresh = RewardJudge(**settings)
    assert "not prepared yet" in fresh.statement
    with pytest.raises(ValueError, match=r"call at\(folder\)"):
        fresh.rate([rated("w1", "w2")])
    fresh = fresh.at(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        fresh.rate([rated("w1", "w2")])
    folder_of(fresh).mkdir()
    (folder_of(fresh) / "reward.json").write_text("{}")
    with pytest.raises(ValueError, match=r"reward\.json: damaged"):
        RewardJudge(**settings).at(tmp_path).prepare()


def test_the_saved_model_writes_conversations_as_its_base_does(judge, settings):
    saved = AnswerFormat.of(ModelRef(path=str(folder_of(judge))))
    base = AnswerFormat.of(ModelRef(**settings["base"]))
    turns = (*conversation("w1 w2"), Message(role="assistant", content="w3"))
    assert saved.ids(turns) == base.ids(turns)
    assert saved.ids(turns)[-1] == base.chat.end_id


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen3"])
def test_other_architectures_can_be_trained_too(settings, tiny_folders, family, tmp_path):
    judge = RewardJudge(**(settings | {"base": {"path": str(tiny_folders[family])}}))
    judge.check()
    judge = judge.at(tmp_path)
    judge.prepare()
    assert judge.calibration.accuracy > 75
