"""Question files of one turn, as FastChat's vicuna_bench, alone and beside questions of two turns."""

import json

import pytest

from tasks.mt_bench import MTBench
from tests.unit.scripted import ScriptedJudge, ScriptedModel

ROWS = [
    {"question_id": 1, "category": "generic", "turns": ["How can I manage my time?"]},
    {"question_id": 2, "category": "writing", "turns": ["Write a poem.", "Make it shorter."]},
]


@pytest.fixture
def benchmark(tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return MTBench(questions=path, temperatures={"generic": 0.7}, modes=("single", "pairwise-baseline"))


def test_each_turn_that_there_is_has_one_record_in_each_mode(benchmark, tmp_path):
    benchmark.check()
    model = ScriptedModel(lambda c: f"answer to {c[-1]['content']}")
    judge = ScriptedJudge(rate=lambda _: 7.0, compare=lambda _: 1.5)
    records = list(benchmark.run(model, judge=judge, seed=0, folder=tmp_path))
    assert [(r.metric, r.item, r.error) for r in records] == [
        (metric, item, None) for metric in ("mt_bench", "mt_bench_win") for item in ("1:1", "2:1", "2:2")
    ]
    assert [len(call["conversations"]) for call in model.calls][:2] == [2, 1]
    assert [(item.rounds, len(item.conversation)) for item in benchmark.items()] == [(1, 1), (2, 3)]


def test_a_question_without_an_answer_fails_once_for_each_of_its_turns(benchmark):
    def refuse(_):
        raise ValueError("too long")

    records = list(benchmark.run(ScriptedModel(refuse), judge=ScriptedJudge(rate=lambda _: 7.0), seed=0))
    assert [r.item for r in records if r.metric == "mt_bench"] == ["1:1", "2:1", "2:2"]
    assert all("no answer to turn 1: too long" in r.error for r in records)


def test_a_category_without_a_temperature_is_told_fastchats(benchmark):
    with pytest.raises(ValueError, match=r"category 'generic' of question 1 has no temperature.*FastChat takes 0\.7"):
        benchmark.model_copy(update={"temperatures": {}}).check()
