"""tasks.questions: a column of results says whose questions were asked, by their content."""

import json
from pathlib import Path

import pytest
import yaml

from harness.run_folder import PlannedBenchmark
from tasks.alpaca_eval import AlpacaEval
from tasks.mt_bench import MTBench
from tasks.questions import asked_of

TASKS = Path(__file__).parents[2] / "tasks"
FORMS = {"sandbox": "sandbox questions", "formats": "own questions"}


@pytest.mark.parametrize(("kind", "whose"), FORMS.items())
def test_questions_that_are_not_the_published_ones_are_named_in_the_column(kind, whose):
    assets = TASKS / kind / "assets"
    bench = MTBench(questions=assets / "mt_bench/question.jsonl", modes=("single", "pairwise-baseline"))
    titles = [metric.title for metric in bench.metrics]
    assert titles == [f"MT-Bench format, {whose}", f"MT-Bench format, {whose}: win rate"]
    alpaca = AlpacaEval(references=assets / "alpaca_eval/reference_outputs.json", length_control="off")
    (metric,) = alpaca.metrics
    assert metric.title == f"AlpacaEval format, {whose}: win rate"
    planned = PlannedBenchmark(name="alpaca_eval", files="alpaca_eval", metrics=alpaca.metrics)
    assert f"format, {whose}" in planned.model_dump_json(), "the plan says so, and the report reads the plan"


def test_the_published_questions_are_known_by_content_and_some_of_them_are_too(monkeypatch):
    known = yaml.safe_load((TASKS / "published.yaml").read_text())
    assert {name: len(set(digests.split())) for name, digests in known.items()} == {"MT-Bench": 160, "AlpacaEval": 805}
    monkeypatch.setattr("tasks.questions._digest", lambda question: question)
    digests = known["MT-Bench"].split()
    assert asked_of("MT-Bench", digests) is None
    assert asked_of("MT-Bench", digests[:3]) is None
    assert asked_of("MT-Bench", [*digests, "Who are you?"]) == "own questions"
    assert asked_of("AlpacaEval", digests) == "own questions"


def test_the_files_of_the_data_folder_are_the_published_ones(data_folder):
    assert [metric.title for metric in MTBench().metrics] == ["MT-Bench"]
    rows = json.loads((data_folder / "alpaca_eval/model_outputs/text_davinci_003.json").read_text())
    assert asked_of("AlpacaEval", [row["instruction"] for row in rows]) is None


def test_nobody_is_told_to_fetch_what_would_not_help(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path))
    (note,) = AlpacaEval(references=TASKS / "sandbox/assets/alpaca_eval/reference_outputs.json").notes
    assert "these are sandbox questions" in note
    assert "fetch" not in note
    assert str(tmp_path) not in note


def test_some_questions_are_spread_over_the_file_and_their_number_stands_in_the_column():
    assets = TASKS / "formats/assets"
    bench = MTBench(questions=assets / "mt_bench/question.jsonl", limit=12)
    assert [metric.title for metric in bench.metrics] == ["MT-Bench format, 12 own questions"]
    categories = [question.category for question in bench.judging(None, None).questions]
    assert len(categories) == 12
    assert {categories.count(name) for name in categories} == {2}, "six families, sorted: as many of each"
    alpaca = AlpacaEval(references=assets / "alpaca_eval/reference_outputs.json", limit=6, length_control="off")
    assert [item.name for item in alpaca.items()] == ["0", "13", "26", "39", "52", "65"], "by their place in the file"
    for limited in (
        MTBench(questions=bench.questions, limit=49, temperatures=0.0),
        AlpacaEval(references=alpaca.references, limit=79),
    ):
        with pytest.raises(ValueError, match=r"limit: \d+ is more than the \d+ questions of .*give at most"):
            limited.check()
