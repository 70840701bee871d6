"""`score mt-bench` and `mt-bench judge`: published numbers from published verdicts, FastChat's numbers from ours."""

import csv
import io
import sys
from typing import ClassVar

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli.app import app, main
from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import (
    Judgment,
    ModelAnswer,
    load_judgments,
    load_pair_judgments,
    write_judgments,
)
from harness.judging import JudgeConfig, Verdict, register_judge
from harness.measure.rescoring import pair_scores, single_scores
from tests.unit.test_mt_bench import QUESTIONS, show_result, write_questions
from tests.unit.test_mt_bench_pairs import judgment as pair
from tests.unit.test_mt_bench_pairs import show_result as show_pairs


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program; (exit code, rows of its CSV, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dspa-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), list(csv.DictReader(io.StringIO(out))), err

    return run


def by_metric(rows):
    return {(row["model"], row["metric"]): row for row in rows}


def rating(question_id=81, turn=1, score=5.0, model="m", judge="j"):
    return Judgment(question_id, model, (judge, "single-v1"), "", "", score, turn, 0.0)


@pytest.mark.parametrize("command", ["score mt-bench", "mt-bench judge", "fastchat"])
def test_the_commands_have_a_help_text_with_an_example(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert f"Example: dspa-bench {command}" in result.output


def test_published_judgments_give_the_published_means_exactly(data_folder, call):
    folder = data_folder / "mt_bench"
    file = folder / "judgments_gpt-4_single.jsonl"
    code, rows, _ = call("score", "mt-bench", file, "--questions", folder / "question.jsonl")
    assert code == 0
    found = by_metric(rows)
    for model, turns in {"mamba_0_5_dpo_ep1": (7.59375, 6.65), "mamba_0_5_dpo_ep3": (7.7375, 6.8875)}.items():
        for turn, mean in enumerate(turns, 1):
            row = found[model, f"mt_bench_turn{turn}"]
            assert (float(row["value"]), row["n"], row["failures"]) == (mean, "80", "0")
        assert float(found[model, "mt_bench"]["value"]) == sum(turns) / 2
        categories = [row for (m, metric), row in found.items() if m == model and "turn" not in metric][1:]
        assert len(categories) == 8
        assert {row["n"] for row in categories} == {"20"}
        assert sum(float(row["value"]) for row in categories) / 8 == pytest.approx(sum(turns) / 2)


def test_failures_of_a_published_file_are_counted_and_never_scored(data_folder, call, capsys):
    file = data_folder / "mt_bench" / "judgments_with_failures.jsonl"
    _, rows, _ = call("score", "mt-bench", file, "--questions", data_folder / "mt_bench" / "question.jsonl")
    found = by_metric(rows)
    numbers = [found["granite-7b-lab", f"mt_bench{turn}"] for turn in ("_turn1", "_turn2", "")]
    assert [(row["n"], row["failures"]) for row in numbers] == [("37", "43"), ("3", "77"), ("40", "120")]
    assert show_result(capsys, file) == pytest.approx([float(row["value"]) for row in numbers], abs=1e-5)


def test_a_failure_that_was_judged_later_is_no_failure():
    scores = single_scores(
        [rating(score=-1), rating(score=7.0), rating(turn=2, score=3.0), rating(turn=2, score=-1)], {}
    )
    assert [(s.metric, s.value, s.n, s.failures) for s in scores] == [
        ("mt_bench", 5.0, 2, 0),
        ("mt_bench_turn1", 7.0, 1, 0),
        ("mt_bench_turn2", 3.0, 1, 0),
    ]


def test_a_model_of_failures_alone_has_no_value(call, tmp_path):
    write_judgments(tmp_path / "j.jsonl", [rating(score=-1)])
    _, rows, _ = call("score", "mt-bench", tmp_path / "j.jsonl", "--questions", write_questions(tmp_path / "q.jsonl"))
    row = by_metric(rows)["m", "mt_bench"]
    assert (row["value"], row["n"], row["failures"]) == ("", "0", "1")


@pytest.mark.parametrize(
    ("judgments", "complaint"),
    [
        ([rating(), rating(score=6.0)], "m: turn 1 of question 81 is judged twice"),
        ([rating(), rating(turn=2, judge="k")], r"several judges \(j, k\)"),
    ],
)
def test_ratings_that_cannot_be_told_apart_are_refused(judgments, complaint):
    with pytest.raises(ValueError, match=complaint):
        single_scores(judgments, {})


def test_a_pair_that_was_compared_twice_is_refused_whichever_model_comes_first():
    with pytest.raises(ValueError, match="a and b: turn 1 of question 81 is judged twice"):
        pair_scores([pair(first="a", second="b"), pair(first="b", second="a")], {}, None)


def test_without_questions_there_are_no_categories_and_it_says_so(call, tmp_path, monkeypatch):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path / "nothing"))
    write_judgments(tmp_path / "a" / "model_judgment" / "j_single.jsonl", [rating()])
    _, rows, err = call("score", "mt-bench", tmp_path / "a" / "model_judgment" / "j_single.jsonl")
    assert [row["metric"] for row in rows] == ["mt_bench", "mt_bench_turn1", "mt_bench_turn2"]
    assert "no scores per category" in err
    write_questions(tmp_path / "a" / "question.jsonl")  # where FastChat has them
    _, rows, err = call("score", "mt-bench", tmp_path / "a" / "model_judgment" / "j_single.jsonl")
    assert [row["metric"] for row in rows][3:] == ["mt_bench_writing"]
    assert err == ""


def test_a_question_that_is_not_known_counts_in_no_category_and_everywhere_else(call, tmp_path):
    write_questions(tmp_path / "q.jsonl")
    write_judgments(tmp_path / "far.jsonl", [rating(), rating(question_id=999)])
    code, rows, err = call("score", "mt-bench", tmp_path / "far.jsonl", "--questions", tmp_path / "q.jsonl")
    assert code == 0
    assert {row["metric"]: row["n"] for row in rows} == {
        "mt_bench": "2", "mt_bench_turn1": "2", "mt_bench_turn2": "0", "mt_bench_writing": "1"
    }  # fmt: skip
    assert "1 of 2 judgments are of questions that are not among those given (first: 999)" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no.jsonl"], "does not exist"),
        (["q.jsonl"], "q.jsonl:1: missing model (a string), judge ([judge, prompt name]), user_prompt (a string)"),
        (["text.jsonl"], "text.jsonl:1: 'question_id' must be an integer, got '81'"),
        (["list.jsonl"], "list.jsonl:1: 'model' must be a string, got ['m']"),
        (["j.jsonl", "--baseline", "a"], "--baseline is for pairwise judgments"),
        (["p.jsonl", "--baseline", "x"], "the baseline 'x'; there are a, b"),
    ],
)
def test_what_cannot_be_scored_is_one_message_and_exit_2(call, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "q.jsonl")
    write_judgments(tmp_path / "j.jsonl", [rating()])
    write_judgments(tmp_path / "text.jsonl", [rating(question_id="81")])
    write_judgments(tmp_path / "list.jsonl", [rating(model=["m"])])
    write_judgments(tmp_path / "p.jsonl", [pair()])
    code, rows, err = call("score", "mt-bench", *arguments)
    assert (code, rows) == (2, [])
    assert complaint in err


# --- mt-bench judge


@register_judge("likes_long")
class LikesLong(JudgeConfig):
    label: ClassVar[str] = "likes_long-v1"
    statement: ClassVar[str] = "Long is good."
    asked: ClassVar[list] = []  # by all of its kind
    operational: ClassVar[frozenset[str]] = frozenset({"silent_on"})
    silent_on: str = ""
    reason: str = "because"

    def rate(self, requests):
        return [self._say(r.conversation, min(10.0, len(r.conversation[-1]["content"]))) for r in requests]

    def compare(self, requests):
        return [self._say(r.first, 1.0 if len(r.answers[0]) > len(r.answers[1]) else 2.0) for r in requests]

    def _say(self, conversation, value):
        self.asked.append(conversation)
        if self.silent_on and self.silent_on in conversation[-2]["content"]:
            return Verdict(None, "?", "cannot be parsed")
        return Verdict(float(value), self.reason)


@pytest.fixture
def suite(tmp_path, tiny_folders):
    """A suite with a judge that likes long answers, except those on turns with the words in ``silent_on``."""
    path = tmp_path / "suite.yaml"
    (tmp_path / "triples.jsonl").write_text('{"prompt": "w1", "chosen": "w2", "rejected": "w3"}\n')
    data = {
        "name": "t",
        "base": {"path": str(tiny_folders["llama"])},
        "triples": {"path": "triples.jsonl"},
        "budgets": [1],
        "judge": {"kind": "likes_long"},
        "benchmarks": [{"name": "mt_bench", "questions": str(write_questions(tmp_path / "question.jsonl"))}],
        "variants": [{"name": "base", "method": "base"}],
    }
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def answers(tmp_path):
    folder = tmp_path / "answers"
    for name, length in (("short", 2), ("middle", 4), ("long", 6)):
        rows = [ModelAnswer(q["question_id"], name, name, ("x" * length, "y" * length), 0.0) for q in QUESTIONS]
        fastchat.write_answers(folder / f"{name}.jsonl", rows)
    return folder


def test_all_pairs_of_models_are_judged_and_scored_as_fastchat_does(call, suite, answers, tmp_path, capsys):
    out = tmp_path / "out"
    code, rows, err = call("mt-bench", "judge", answers, "--suite", suite, "--out", out, "--mode", "pairwise-all")
    assert (code, "Long is good." in err) == (0, True)
    path = out / "model_judgment" / "likes_long-v1_pair.jsonl"
    assert {(j.model_1, j.model_2) for j in load_pair_judgments(path)} == {
        ("long", "middle"),
        ("long", "short"),
        ("middle", "short"),
    }
    shown = show_pairs(capsys, path)
    assert {model: shown[model][-1] for model in shown} == {"long": 1.0, "middle": 0.5, "short": 0.0}
    found = by_metric(rows)
    assert {model: 100 * adjusted for model, (*_, adjusted) in shown.items()} == {
        model: float(found[model, "mt_bench_win"]["value"]) for model in shown
    }
    assert call("score", "mt-bench", path)[1] == rows
    _, rows, _ = call("score", "mt-bench", path, "--baseline", "middle")
    assert {(m, float(r["value"])) for (m, metric), r in by_metric(rows).items() if metric == "mt_bench_win"} == {
        ("long", 100.0),
        ("short", 0.0),
    }


def test_the_same_command_again_asks_only_for_what_failed(call, suite, answers, tmp_path):
    arguments = ["mt-bench", "judge", answers, "--suite", suite, "--out", tmp_path / "out", "--mode", "pairwise-all"]
    code, rows, err = call(*arguments, "--set", "judge.silent_on=3+3")
    assert code == 1
    assert "3 verdicts failed, first: g1: cannot be parsed; g2: cannot be parsed; the same command tries again" in err
    assert by_metric(rows)["long", "mt_bench_win"]["failures"] == "2"
    asked = LikesLong.asked
    asked.clear()
    code, rows, _ = call(*arguments)
    assert (code, len(asked)) == (0, 6)
    assert by_metric(rows)["long", "mt_bench_win"]["failures"] == "0"
    asked.clear()
    assert call(*arguments[:-1], "pairwise-baseline", "--baseline", "long")[0] == 0  # pairs that were compared already
    assert asked == []


def test_judgments_made_otherwise_are_not_taken_for_this_judges(call, suite, answers, tmp_path):
    out = tmp_path / "out"
    arguments = ["mt-bench", "judge", answers, "--suite", suite, "--out", out]
    assert call(*arguments)[0] == 0
    before = (out / "model_judgment" / "likes_long-v1_single.jsonl").read_bytes()
    code, _, err = call(*arguments, "--set", "judge.reason=so")
    assert code == 2
    assert "has judgments made otherwise; give another --out" in err
    assert 'judge.reason: "because" there, "so" here' in err
    question = tmp_path / "question.jsonl"
    question.write_text(question.read_text(encoding="utf-8").replace("poem", "song"), encoding="utf-8")
    code, _, err = call(*arguments)
    assert (code, "shown.questions" in err) == (2, True)
    assert (out / "model_judgment" / "likes_long-v1_single.jsonl").read_bytes() == before


def test_single_answers_of_chosen_models_are_rated(call, suite, answers, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["mt-bench", "judge", answers, "--suite", suite, "--out", out]
    _, rows, _ = call(*arguments, "--model", "long", "--model", "short")
    path = out / "model_judgment" / "likes_long-v1_single.jsonl"
    assert {(j.model, j.score) for j in load_judgments(path)} == {("long", 6.0), ("short", 2.0)}
    assert call("score", "mt-bench", path)[1] == rows
    asked = LikesLong.asked
    asked.clear()
    _, rows, _ = call(*arguments, "--model", "middle")
    assert len(asked) == 6
    assert {row["model"] for row in rows} == {"middle"}
    assert {j.model for j in load_judgments(path)} == {"long", "short", "middle"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--mode", "pairwise-baseline"], "--baseline MODEL belongs to"),
        (["--baseline", "long"], "--baseline MODEL belongs to"),
        (
            ["--mode", "pairwise-baseline", "--baseline", "x"],
            "no answers of 'x'; there are those of long, middle, short",
        ),
        (["--model", "x"], "no answers of 'x'"),
        (["--mode", "pairwise-all", "--model", "long"], "compares two models or more, and only long is there"),
        (["--set", "judge.kind=nobody"], "unknown judge 'nobody'"),
    ],
)
def test_a_wrong_command_does_nothing(call, suite, answers, tmp_path, arguments, complaint):
    code, _, err = call("mt-bench", "judge", answers, "--suite", suite, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert complaint in err
    assert not (tmp_path / "out").exists()


def test_answers_that_are_not_complete_are_refused(call, suite, answers, tmp_path):
    fastchat.write_answers(answers / "short.jsonl", fastchat.load_answers(answers / "short.jsonl")[:2])
    code, _, err = call("mt-bench", "judge", answers, "--suite", suite, "--out", tmp_path / "out")
    assert (code, "short.jsonl: no answer to turn 1 of question 141" in err) == (2, True)
    code, _, err = call("mt-bench", "judge", tmp_path / "nowhere", "--suite", suite, "--out", tmp_path / "out")
    assert (code, "is no folder of answers" in err) == (2, True)
