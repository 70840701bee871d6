"""MT-Bench in pairs: both orders, FastChat's rule and files, the baseline, resuming."""

import argparse
import re
from dataclasses import replace

import pytest

from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import (
    ModelAnswer,
    PairJudgment,
    judgment_path,
    load_pair_judgments,
    write_judgments,
)
from harness.measure.rescoring import pair_scores
from tasks.mt_bench import MTBench
from tests.unit.scripted import ScriptedJudge, ScriptedModel
from tests.unit.test_mt_bench import QUESTIONS, echo, run, write_questions

NAME = "scripted-ffffffffffff"


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path / "question.jsonl")


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "gpt-x.jsonl"
    said = {"81": ("b", "bb"), "111": ("4", "6"), "141": ("c", "cc")}
    fastchat.write_answers(path, [ModelAnswer(int(i), f"a{i}", "gpt-x", turns, 0.0) for i, turns in said.items()])
    return path


def longer(request):
    first, second = map(len, request.answers)
    return 1.5 if first == second else 1.0 if first > second else 2.0


def pairwise(questions, baseline, **settings):
    return MTBench(questions=questions, modes=("pairwise-baseline",), baseline=baseline, **settings)


def show_result(capsys, path, baseline=None):
    """{model: (win, loss, tie, adjusted win rate)} as FastChat's own show_result prints them."""
    from fastchat.llm_judge.show_result import display_result_pairwise

    capsys.readouterr()
    display_result_pairwise(
        argparse.Namespace(
            bench_name="", input_file=str(path), judge_model="", model_list=None, baseline_model=baseline
        )
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.search(r"\d\.\d+$", line)]
    return {row[0]: (*map(int, row[1:4]), float(row[-1])) for row in rows}


def judgment(question_id=81, turn=1, first="a", second="b", g1="model_1", g2="model_1", judge="j"):
    return PairJudgment(question_id, first, second, g1, g2, (judge, "pair-v2"), "", "", "", "", turn, 0.0)


def test_each_turn_is_compared_in_both_orders_within_its_own_conversation(questions, baseline):
    judge = ScriptedJudge(compare=longer)
    run(pairwise(questions, baseline), ScriptedModel(echo), judge)
    assert len(judge.asked) == 2 * 2 * len(QUESTIONS)
    for one, other in zip(judge.asked[::2], judge.asked[1::2], strict=True):
        assert (one.first, one.second) == (other.second, other.first)
    second = judge.asked[6]
    assert [m["content"] for m in second.first] == [
        "What is 2+2?",
        "answer 1 to What is 2+2?",
        "And 3+3?",
        "answer 2 to And 3+3?",
    ]
    assert [m["content"] for m in second.second] == ["What is 2+2?", "4", "And 3+3?", "6"]


@pytest.mark.parametrize(
    ("first_shown", "second_shown", "winners", "value"),
    [
        (1.0, 2.0, ("model_1", "model_1"), 100.0),
        (2.0, 1.0, ("model_2", "model_2"), 0.0),
        (1.0, 1.0, ("model_1", "model_2"), 50.0),  # whoever comes first wins: no win
        (2.0, 2.0, ("model_2", "model_1"), 50.0),
        (1.5, 1.5, ("tie", "tie"), 50.0),
        (1.5, 2.0, ("tie", "model_1"), 50.0),
        (1.1, 1.9, ("model_1", "model_1"), 100.0),  # a judge of degrees
    ],
)
def test_a_win_counts_when_both_orders_agree(questions, baseline, first_shown, second_shown, winners, value):
    judge = ScriptedJudge(compare=lambda r: first_shown if r.answers[0].startswith("answer") else second_shown)
    records = run(pairwise(questions, baseline), ScriptedModel(echo), judge)
    assert {(tuple(r.raw["winners"]), r.value, r.metric) for r in records} == {(winners, value, "mt_bench_win")}


def test_a_tie_or_an_inconsistent_pair_is_what_fastchats_show_result_makes_of_it(tmp_path, capsys):
    outcomes = ["model_1", "model_2", "tie", "error"]
    games = [(g1, g2) for g1 in outcomes for g2 in outcomes]
    judgments = [judgment(i, 1, "a", "b", g1, g2) for i, (g1, g2) in enumerate(games)]
    judgments += [judgment(i, 2, "c", "a", g1, g2) for i, (g1, g2) in enumerate(games[:5])]
    write_judgments(tmp_path / "j.jsonl", judgments)
    for baseline in (None, "b"):
        shown = show_result(capsys, tmp_path / "j.jsonl", baseline)
        scores = {(s.model, s.metric): s for s in pair_scores(judgments, {}, baseline)}
        assert shown.keys() == {model for model, _ in scores}
        for model, (win, loss, tie, adjusted) in shown.items():
            assert scores[model, "mt_bench_win"].value == pytest.approx(100 * adjusted, abs=1e-4)
            counts = [scores[model, f"mt_bench_win_{name}"].value for name in ("wins", "losses", "ties")]
            assert counts == [win, loss, tie]
    assert scores["a", "mt_bench_win"].failures == sum("error" in pair for pair in games)


def test_a_file_of_pairs_is_read_by_fastchat_and_gives_our_records(questions, baseline, tmp_path, capsys):
    judge = ScriptedJudge(compare=longer)
    records = run(pairwise(questions, baseline), ScriptedModel(lambda c: echo(c)[:4]), judge, tmp_path)
    path = judgment_path(tmp_path, judge.label, "pair")
    assert load_pair_judgments(path)[0].judge == ("scripted-v1", "pair-v2")
    values = [r.value for r in records]
    wins, losses, ties = (values.count(v) for v in (100.0, 0.0, 50.0))
    mean = sum(values) / len(values) / 100
    assert show_result(capsys, path, "gpt-x") == {NAME: (wins, losses, ties, pytest.approx(mean, abs=1e-5))}


def test_references_are_shown_and_named_as_fastchat_does(questions, baseline, tmp_path):
    references = tmp_path / "gpt-4.jsonl"
    fastchat.write_answers(references, [ModelAnswer(111, "a", "gpt-4", ("4", "6"), 0.0)])
    judge = ScriptedJudge(compare=longer)
    run(pairwise(questions, baseline, references=references), ScriptedModel(echo), judge, tmp_path)
    assert [r.references for r in judge.asked[4:8]] == [("4",), ("4",), ("4", "6"), ("4", "6")]
    names = [j.judge[1] for j in load_pair_judgments(judgment_path(tmp_path, judge.label, "pair"))]
    assert names[1:4] == ["pair-v2-multi-turn", "pair-math-v1", "pair-math-v1-multi-turn"]


def test_a_game_without_a_verdict_is_a_failure_and_is_the_only_one_asked_again(questions, baseline, tmp_path):
    benchmark = pairwise(questions, baseline)

    def shaky(request):
        return None if request.answers[1] == "6" else longer(request)

    store = tmp_path / "answers.jsonl"
    first = run(benchmark, ScriptedModel(echo).stored(store), ScriptedJudge(compare=shaky), tmp_path)
    assert [(r.item, r.value, r.error) for r in first if r.error] == [("111:2", None, "g1: cannot be parsed")]
    stored = load_pair_judgments(judgment_path(tmp_path, "scripted-v1", "pair"))
    assert [(j.g1_winner, j.g2_winner, j.failed, j.winner) for j in stored][3] == ("error", "model_1", True, "error")
    assert stored[3].g1_judgment == "no rating in here"
    model, judge = ScriptedModel(echo), ScriptedJudge(compare=longer)
    second = run(benchmark, model.stored(store), judge, tmp_path)
    assert model.calls == []
    assert [r.answers for r in judge.asked] == [("answer 2 to And 3+3?", "6")]
    assert [r.value for r in second] == [100.0] * 6


def test_other_baseline_answers_make_old_judgments_worthless(questions, baseline, tmp_path):
    benchmark = pairwise(questions, baseline)
    run(benchmark, ScriptedModel(echo), ScriptedJudge(compare=longer), tmp_path)
    answers = fastchat.load_answers(baseline)
    fastchat.write_answers(baseline, [replace(answers[0], turns=("b" * 99, "bb")), *answers[1:]])
    judge = ScriptedJudge(compare=longer)
    records = run(pairwise(questions, baseline), ScriptedModel(echo), judge, tmp_path)
    assert len(judge.asked) == 12
    assert [r.value for r in records] == [0.0] + [100.0] * 5


def test_both_modes_share_one_set_of_answers(questions, baseline, tmp_path):
    benchmark = MTBench(questions=questions, modes=("single", "pairwise-baseline"), baseline=baseline)
    assert [metric.name for metric in benchmark.metrics] == ["mt_bench", "mt_bench_win"]
    assert benchmark.asks == {"rate", "compare"}
    model, judge = ScriptedModel(echo), ScriptedJudge(rate=lambda r: 7.0, compare=longer)
    records = run(benchmark, model, judge, tmp_path)
    assert len(model.calls) == 2
    assert [(r.metric, r.item) for r in records[5:7]] == [("mt_bench", "141:2"), ("mt_bench_win", "81:1")]
    assert len({(r.metric, r.item) for r in records}) == len(records) == 12
    assert run(benchmark, ScriptedModel(echo), ScriptedJudge(), tmp_path) == records  # nothing is asked again
    assert sorted(p.name for p in (tmp_path / "model_answer").iterdir()) == ["gpt-x.jsonl", f"{NAME}.jsonl"]


def test_an_answer_that_is_missing_fails_the_turn(questions, baseline, tmp_path):
    def reply(conversation):
        if "3+3" in conversation[-1]["content"]:
            raise ValueError("too long")
        return echo(conversation)

    records = run(pairwise(questions, baseline), ScriptedModel(reply), ScriptedJudge(compare=longer), tmp_path)
    assert [(r.item, r.error) for r in records if r.error] == [("111:2", "no answer to turn 2: too long")]


def test_without_a_file_the_baseline_is_the_runs_base_model(questions, tiny_base, tmp_path):
    aligned = tiny_base("llama").derive(system_prompt="w3 w4 w5", method="prompt")
    benchmark = MTBench(questions=questions, modes=("pairwise-baseline",), max_new_tokens=4)
    judge = ScriptedJudge(compare=longer)
    records = run(benchmark, aligned, judge, tmp_path)
    plain = MTBench(questions=questions, max_new_tokens=4)
    answers = run(plain, tiny_base("llama"), ScriptedJudge(rate=lambda r: 5.0))
    assert [r.raw["baseline_answer"] for r in records] == [r.raw["answer"] for r in answers]
    assert {r.raw["baseline"] for r in records} == {f"base-{tiny_base('llama').fingerprint[:12]}"}
    assert len(list((tmp_path / "model_answer").iterdir())) == 2


def test_the_base_model_against_itself_is_a_tie_whatever_order_the_judge_likes(questions, tiny_base, tmp_path):
    benchmark = MTBench(questions=questions, modes=("pairwise-baseline",), max_new_tokens=4)
    records = run(benchmark, tiny_base("llama"), ScriptedJudge(compare=lambda r: 1.0), tmp_path)
    assert {r.value for r in records} == {50.0}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"modes": ()}, "at least 1 item"),
        ({"modes": ("single", "single")}, "given twice"),
        ({"modes": ("pairwise-all",)}, "'single' or 'pairwise-baseline'"),
        ({"baseline": "x.jsonl"}, "nothing is compared with it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(questions, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        MTBench(questions=questions, **settings)


def test_a_baseline_that_does_not_answer_everything_is_refused_before_any_work(questions, baseline):
    fastchat.write_answers(baseline, fastchat.load_answers(baseline)[:2])
    with pytest.raises(ValueError, match=r"gpt-x\.jsonl: no answer to turn 1 of question 141"):
        pairwise(questions, baseline).check()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"g1_winner": "A"}, "'g1_winner' must be one of model_1, model_2, tie, error"),
        ({"turn": 3}, "'turn' must be 1 or 2"),
        ({"judge": "gpt-4"}, r"'judge' must be \[judge, prompt name\]"),
    ],
)
def test_a_malformed_pair_is_reported_with_file_and_line(tmp_path, change, complaint):
    from harness.files import write_jsonl

    good = {**vars(judgment()), "judge": ["j", "pair-v2"]}
    write_jsonl(tmp_path / "j.jsonl", [good, good | change])
    with pytest.raises(ValueError, match=r"j\.jsonl:2: .*" + complaint):
        load_pair_judgments(tmp_path / "j.jsonl")
    write_jsonl(tmp_path / "j.jsonl", [{k: v for k, v in good.items() if k != "g2_winner"}])
    with pytest.raises(ValueError, match=r"j\.jsonl:1: .*missing g2_winner"):
        load_pair_judgments(tmp_path / "j.jsonl")
