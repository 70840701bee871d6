"""MT-Bench: FastChat's files, two turns, temperatures, failures, resuming."""

import argparse
import json
import re
from pathlib import Path

import pytest

from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat import files as judgments_of
from harness.evaluators.fastchat.files import Judgment, ModelAnswer
from harness.run_folder.answers import AnswerStore
from tasks.mt_bench import MTBench
from tests.unit.scripted import ScriptedJudge, ScriptedModel

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Make it shorter."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2+2?", "And 3+3?"]},
    {"question_id": 141, "category": "stem", "turns": ["What is a cell?", "Name two kinds.\u2028Really two."]},
]


def echo(conversation):
    return f"answer {len(conversation) // 2 + 1} to {conversation[-1]['content']}"


def score_by_length(request):
    return float(1 + len(request.conversation[-1]["content"]) % 10)


def write_questions(path):
    path.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in QUESTIONS), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path / "question.jsonl")


def run(benchmark, model, judge, folder=None, seed=3):
    return list(benchmark.run(model, judge=judge, seed=seed, folder=folder))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def show_result(capsys, path):
    """The numbers FastChat's own show_result prints: turn 1, turn 2 and average of the only model."""
    from fastchat.llm_judge.show_result import display_result_single

    capsys.readouterr()
    display_result_single(
        argparse.Namespace(bench_name="mt_bench", input_file=str(path), judge_model="x", model_list=None)
    )
    return [float(number) for number in re.findall(r"(-?\d+\.\d+)$", capsys.readouterr().out, re.MULTILINE)]


def test_second_turn_is_asked_in_the_conversation_that_holds_the_first_answer(questions):
    model = ScriptedModel(echo)
    run(MTBench(questions=questions), model, ScriptedJudge(rate=score_by_length))
    first, second = model.calls
    assert [c[-1]["content"] for c in first["conversations"]] == [q["turns"][0] for q in QUESTIONS]
    assert second["conversations"][1] == (
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "answer 1 to What is 2+2?"},
        {"role": "user", "content": "And 3+3?"},
    )


def test_temperatures_are_fastchats_by_category_unless_given(questions):
    model = ScriptedModel(echo)
    run(MTBench(questions=questions, max_new_tokens=7), model, ScriptedJudge(rate=score_by_length), seed=5)
    assert [call["temperature"] for call in model.calls] == [[0.7, 0.0, 0.1]] * 2
    assert {(call["max_new_tokens"], call["seed"]) for call in model.calls} == {(7, 5)}
    model = ScriptedModel(echo)
    run(MTBench(questions=questions, temperatures={"math": 0.3}), model, ScriptedJudge(rate=score_by_length))
    assert model.calls[0]["temperature"] == [0.7, 0.3, 0.1]
    model = ScriptedModel(echo)
    run(MTBench(questions=questions, temperatures=0.5), model, ScriptedJudge(rate=score_by_length))
    assert model.calls[0]["temperature"] == [0.5, 0.5, 0.5]


def test_our_temperatures_are_those_of_the_installed_fastchat():
    source = pytest.importorskip("fastchat.llm_judge").__path__[0]
    text = (Path(source) / "common.py").read_text(encoding="utf-8")
    block = re.search(r"temperature_config = (\{.*?\})", text, re.DOTALL)
    assert block is not None
    theirs = json.loads(re.sub(r",\s*\}", "}", block[1]))
    assert {k: theirs[k] for k in fastchat.TEMPERATURES} == fastchat.TEMPERATURES


def test_a_turn_is_one_record_and_the_turns_of_a_question_are_one_cluster(questions):
    records = run(MTBench(questions=questions), ScriptedModel(echo), ScriptedJudge(rate=score_by_length))
    assert [(r.item, r.cluster) for r in records[:3]] == [("81:1", "81"), ("81:2", "81"), ("111:1", "111")]
    assert {r.metric for r in records} == {"mt_bench"}
    assert records[3].value == 1 + len("answer 2 to And 3+3?") % 10
    assert records[3].raw["answer"] == "answer 2 to And 3+3?"
    assert (records[3].raw["category"], records[3].raw["turn"]) == ("math", 2)


def test_the_judge_sees_the_references_up_to_the_turn_where_there_are_any(questions, tmp_path):
    references = tmp_path / "gpt-4.jsonl"
    fastchat.write_answers(references, [ModelAnswer(111, "a", "gpt-4", ("4", "6"), 0.0)])
    judge = ScriptedJudge(rate=score_by_length)
    folder = tmp_path / "out"
    run(MTBench(questions=questions, references=references), ScriptedModel(echo), judge, folder)
    assert [request.references for request in judge.asked] == [(), (), ("4",), ("4", "6"), (), ()]
    judgments = judgments_of.load_judgments(judgments_of.judgment_path(folder, judge.label))
    assert [j.judge[1] for j in judgments[1:4]] == [
        "single-v1-multi-turn",
        "single-math-v1",
        "single-math-v1-multi-turn",
    ]


def test_fastchats_show_result_prints_the_means_of_our_records(questions, tmp_path, capsys):
    judge = ScriptedJudge(rate=score_by_length)
    records = run(MTBench(questions=questions), ScriptedModel(echo), judge, tmp_path)
    turns = [[r.value for r in records if r.raw["turn"] == turn] for turn in (1, 2)]
    means = [sum(v) / len(v) for v in (*turns, turns[0] + turns[1])]
    assert show_result(capsys, judgments_of.judgment_path(tmp_path, judge.label)) == pytest.approx(means, abs=1e-5)


def test_fastchats_reader_finds_our_answers_under_the_models_name(questions, tmp_path):
    model = ScriptedModel(echo)
    run(MTBench(questions=questions), model, ScriptedJudge(rate=score_by_length), tmp_path)
    rows = lines(tmp_path / "model_answer" / "scripted-ffffffffffff.jsonl")
    assert [row["question_id"] for row in rows] == [81, 111, 141]
    assert rows[0].keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert rows[1]["choices"] == [{"index": 0, "turns": ["answer 1 to What is 2+2?", "answer 2 to And 3+3?"]}]


def test_a_failed_judgment_is_an_error_with_its_raw_text_and_no_score(questions, tmp_path, capsys):
    judge = ScriptedJudge(rate=lambda r: None if "3+3" in r.conversation[-1]["content"] else 6.0)
    records = run(MTBench(questions=questions), ScriptedModel(echo), judge, tmp_path)
    failed = [r for r in records if r.error is not None]
    assert [(r.item, r.value, r.error) for r in failed] == [("111:2", None, "cannot be parsed")]
    assert failed[0].raw["judgment"] == "no rating in here"
    path = judgments_of.judgment_path(tmp_path, judge.label)
    rows = lines(path)
    assert [row["score"] for row in rows] == [6.0, 6.0, 6.0, -1, 6.0, 6.0]
    assert rows[3]["judgment"] == "no rating in here"
    assert show_result(capsys, path) == [6.0, 6.0, 6.0]  # show_result drops the -1


def test_answers_and_good_judgments_are_used_again_and_failed_ones_asked_anew(questions, tmp_path):
    benchmark = MTBench(questions=questions)
    judge = ScriptedJudge(rate=lambda r: None if "3+3" in r.conversation[-1]["content"] else 6.0)
    store = tmp_path / "answers.jsonl"
    first = run(benchmark, ScriptedModel(echo).stored(store), judge, tmp_path)
    model, judge = ScriptedModel(echo), ScriptedJudge(rate=lambda r: 9.0)
    second = run(benchmark, model.stored(store), judge, tmp_path)
    assert model.calls == []
    assert [r.conversation[-1]["content"] for r in judge.asked] == ["answer 2 to And 3+3?"]
    assert [r.value for r in second] == [6.0, 6.0, 6.0, 9.0, 6.0, 6.0]
    assert [r.item for r in second] == [r.item for r in first]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"max_new_tokens": 9},
        {"temperatures": 0.2},
        {"fingerprint": "f" * 12 + "0" * 52},  # the same file name
    ],
)
def test_answers_of_another_model_or_other_settings_are_not_used_again(questions, tmp_path, changed):
    store = tmp_path / "answers.jsonl"
    before = ScriptedModel(echo).stored(store)
    run(MTBench(questions=questions), before, ScriptedJudge(rate=lambda r: 6.0), tmp_path)
    fields = {key: value for key, value in changed.items() if key in MTBench.model_fields}
    model = ScriptedModel(lambda c: "new", changed.get("fingerprint", "f" * 64))
    judge = ScriptedJudge(rate=lambda r: 2.0)
    benchmark = MTBench(questions=questions, **fields)
    records = run(benchmark, model.stored(store), judge, tmp_path, seed=changed.get("seed", 3))
    assert {(r.value, AnswerStore(store)[r.raw["answer_key"]].text) for r in records} == {(2.0, "new")}


def test_judgments_of_another_model_or_of_replaced_answers_are_not_taken_for_this_ones(questions, tmp_path):
    benchmark = MTBench(questions=questions)
    one, two = ScriptedModel(echo, "1" * 64), ScriptedModel(echo, "2" * 64)
    run(benchmark, one, ScriptedJudge(rate=lambda r: 4.0), tmp_path)
    run(benchmark, two, ScriptedJudge(rate=lambda r: 8.0), tmp_path)
    again = ScriptedJudge(rate=lambda r: 5.0)
    assert {r.value for r in run(benchmark, one, again, tmp_path)} == {4.0}  # its own, which the other's did not cost
    assert again.asked == []
    other = ScriptedJudge(rate=lambda r: 7.0)
    other.label = "other"
    shouting, whispering = (ScriptedModel(reply, "1" * 64) for reply in (lambda c: "LOUD", lambda c: "soft"))
    run(benchmark, shouting, other, tmp_path)
    run(benchmark, whispering, ScriptedJudge(rate=lambda r: 6.0), tmp_path)
    other = ScriptedJudge(rate=lambda r: 3.0)
    other.label = "other"
    assert {r.value for r in run(benchmark, whispering, other, tmp_path)} == {3.0}


def test_a_damaged_export_of_answers_is_made_anew_and_its_judgments_are_asked_for_again(questions, tmp_path):
    store, judge = tmp_path / "answers.jsonl", ScriptedJudge(rate=lambda r: 6.0)
    run(MTBench(questions=questions), ScriptedModel(echo).stored(store), judge, tmp_path)
    path = tmp_path / "model_answer" / "scripted-ffffffffffff.jsonl"
    whole = lines(path)
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    model, judge = ScriptedModel(echo), ScriptedJudge(rate=lambda r: 6.0)
    run(MTBench(questions=questions), model.stored(store), judge, tmp_path)
    assert (model.calls, len(judge.asked)) == ([], 6)
    assert [{**row, "tstamp": 0} for row in lines(path)] == [{**row, "tstamp": 0} for row in whole]


def test_a_judgment_does_not_repeat_the_answer(questions, tmp_path):
    run(MTBench(questions=questions), ScriptedModel(echo), ScriptedJudge(rate=lambda r: 6.0), tmp_path)
    rows = lines(judgments_of.judgment_path(tmp_path, "scripted-v1"))
    assert {row["user_prompt"] for row in rows} == {""}


def test_a_second_judge_writes_its_judgments_and_no_answers(questions, tmp_path):
    benchmark, judge = MTBench(questions=questions), ScriptedJudge(rate=lambda r: 6.0)
    first = run(benchmark, ScriptedModel(echo), judge, tmp_path / "first")
    again = list(benchmark.judge_again(ScriptedModel(echo), judge=judge, seed=3, folder=tmp_path / "second"))
    assert again == first
    assert [path.name for path in sorted((tmp_path / "second").iterdir())] == ["model_judgment", "question.jsonl"]


def test_judgments_of_replaced_answers_are_gone_even_if_judging_then_fails(questions, tmp_path):
    run(MTBench(questions=questions), ScriptedModel(echo), ScriptedJudge(rate=lambda r: 6.0), tmp_path)

    def broken(_):
        raise RuntimeError("killed")

    judge = ScriptedJudge(rate=broken)
    with pytest.raises(RuntimeError, match="killed"):
        run(MTBench(questions=questions), ScriptedModel(lambda c: "new"), judge, tmp_path)
    assert not judgments_of.judgment_path(tmp_path, judge.label).exists()


def test_a_conversation_that_does_not_fit_fails_its_turns_and_no_others(questions, tmp_path):
    def reply(conversation):
        if "3+3" in conversation[-1]["content"] or "poem" in conversation[-1]["content"]:
            raise ValueError("too long")
        return echo(conversation)

    judge = ScriptedJudge(rate=lambda r: 5.0)
    records = run(MTBench(questions=questions), ScriptedModel(reply), judge, tmp_path)
    assert [(r.item, r.error) for r in records if r.error] == [
        ("81:1", "no answer to turn 1: too long"),
        ("81:2", "no answer to turn 1: too long"),
        ("111:2", "no answer to turn 2: too long"),
    ]
    assert len(judge.asked) == 3
    assert sum(r.value == 5.0 for r in records) == 3
    assert run(MTBench(questions=questions), ScriptedModel(reply), judge, tmp_path) == records


@pytest.mark.parametrize("modes", [("single",), ("single", "pairwise-baseline")])
def test_a_model_without_any_answer_can_be_run_again(questions, tmp_path, modes):
    def reply(_):
        raise ValueError("too long")

    baseline = tmp_path / "before.jsonl"
    fastchat.write_answers(baseline, [ModelAnswer(q["question_id"], "a", "before", ("1", "2"), 0.0) for q in QUESTIONS])
    benchmark = MTBench(questions=questions, modes=modes, baseline=baseline if len(modes) == 2 else None)
    out = tmp_path / "out"
    judge = ScriptedJudge(rate=lambda r: 5.0, compare=lambda r: 1.0)
    first = run(benchmark, ScriptedModel(reply), judge, out)
    assert {r.error for r in first} == {"no answer to turn 1: too long"}
    assert run(benchmark, ScriptedModel(reply), judge, out) == first
    assert {r.value for r in run(benchmark, ScriptedModel(echo), judge, out) if r.metric == "mt_bench"} == {5.0}


def test_a_second_turn_that_did_not_fit_is_tried_again(questions, tmp_path):
    def reply(conversation):
        if len(conversation) == 3:
            raise ValueError("too long")
        return echo(conversation)

    judge = ScriptedJudge(rate=lambda r: 5.0)
    first = run(MTBench(questions=questions), ScriptedModel(reply), judge, tmp_path)
    assert [r.error is None for r in first] == [True, False] * 3
    assert run(MTBench(questions=questions), ScriptedModel(reply), judge, tmp_path) == first
    second = run(MTBench(questions=questions), ScriptedModel(echo), judge, tmp_path)
    assert [r.value for r in second] == [5.0] * 6


def test_a_stored_first_turn_is_not_asked_again_with_a_second_turn_that_did_not_fit(questions, tmp_path):
    def reply(conversation):
        if len(conversation) == 3:
            raise ValueError("too long")
        return echo(conversation)

    store, judge = tmp_path / "answers.jsonl", ScriptedJudge(rate=lambda r: 5.0)
    run(MTBench(questions=questions), ScriptedModel(reply).stored(store), judge)
    model = ScriptedModel(echo)
    assert [r.value for r in run(MTBench(questions=questions), model.stored(store), judge)] == [5.0] * 6
    assert [len(asked) for call in model.calls for asked in call["conversations"]] == [3, 3, 3]


def test_it_needs_a_judge(questions):
    with pytest.raises(ValueError, match="needs a judge"):
        run(MTBench(questions=questions), ScriptedModel(echo), None)


def test_prompts_are_both_turns_of_every_question(questions):
    assert MTBench(questions=questions).prompts() == [turn for q in QUESTIONS for turn in q["turns"]]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"question_id": "a", "category": "math", "turns": ["x", "y"]}', "'question_id' must be an integer"),
        ('{"question_id": 1, "category": "", "turns": ["x", "y"]}', "'category' must be"),
        ('{"question_id": 1, "category": "math", "turns": ["x", "y", "z"]}', "one or two non-empty strings"),
        ('{"question_id": 1, "category": "math", "turns": ["x", " "]}', "one or two non-empty strings"),
        ('{"question_id": 81, "category": "math", "turns": ["x", "y"]}', "question_id 81 occurs twice"),
    ],
)
def test_a_malformed_question_is_reported_with_file_and_line(questions, line, complaint):
    questions.write_text(json.dumps(QUESTIONS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"question\.jsonl:2: .*" + complaint):
        MTBench(questions=questions).check()


def test_a_category_without_a_temperature_is_reported(questions):
    row = {"question_id": 1, "category": "cooking", "turns": ["x", "y"]}
    questions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="category 'cooking' of question 1 has no temperature"):
        MTBench(questions=questions).check()
    MTBench(questions=questions, temperatures={"cooking": 0.7}).check()


def test_missing_files_are_reported(tmp_path, questions):
    with pytest.raises(ValueError, match="does not exist"):
        MTBench(questions=tmp_path / "no.jsonl").check()
    with pytest.raises(ValueError, match="does not exist"):
        MTBench(questions=questions, references=tmp_path / "no.jsonl").check()


def test_a_judgment_survives_writing_and_reading(tmp_path):
    judgment = Judgment(81, "m", ("j", "single-v1"), "prompt\u2028", "Rating: [[7]]", 7, 1, 1.5)
    judgments_of.write_judgments(tmp_path / "j.jsonl", [judgment])
    assert judgments_of.load_judgments(tmp_path / "j.jsonl") == [judgment]


def test_published_judgments_give_the_published_turn_means(data_folder, capsys, tmp_path):
    published = judgments_of.load_judgments(data_folder / "mt_bench" / "judgments_gpt-4_single.jsonl")
    means = {
        (model, turn): sum(scores) / len(scores)
        for model in {j.model for j in published}
        for turn in (1, 2)
        if (scores := [j.score for j in published if j.model == model and j.turn == turn])
    }
    assert sorted(means.values()) == sorted([7.59375, 6.65, 7.7375, 6.8875])
    one = [j for j in published if j.model == "mamba_0_5_dpo_ep1"]
    judgments_of.write_judgments(tmp_path / "one.jsonl", one)
    rewritten = show_result(capsys, tmp_path / "one.jsonl")
    assert rewritten[:2] == [means["mamba_0_5_dpo_ep1", 1], means["mamba_0_5_dpo_ep1", 2]]


def test_failures_in_a_published_file_are_failures(data_folder):
    judgments = judgments_of.load_judgments(data_folder / "mt_bench" / "judgments_with_failures.jsonl")
    assert (len(judgments), sum(j.failed for j in judgments)) == (160, 120)


def test_the_real_questions_and_references_are_readable(data_folder):
    folder = data_folder / "mt_bench"
    benchmark = MTBench(questions=folder / "question.jsonl", references=folder / "reference_answer" / "gpt-4.jsonl")
    benchmark.check()
    assert len(benchmark.prompts()) == 160


def test_without_questions_those_of_the_data_folder_are_asked_with_its_references(data_folder, monkeypatch):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(data_folder))
    benchmark = MTBench.model_validate({})
    benchmark.check()
    assert len(benchmark.prompts()) == 160
    assert benchmark.references == data_folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl"
    assert MTBench.model_validate({"references": None}).references is None


def test_a_data_folder_without_them_is_refused_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="dspa-bench data fetch mt_bench"):
        MTBench.model_validate({}).check()


def test_answers_that_have_no_second_turn_do_not_cost_the_judgments_of_the_others(questions, tmp_path):
    def reply(conversation):
        if "3+3" in conversation[-1]["content"]:
            raise ValueError("too long")
        return echo(conversation)

    run(MTBench(questions=questions), ScriptedModel(reply), ScriptedJudge(rate=lambda r: 5.0), tmp_path)
    judge = ScriptedJudge(rate=lambda r: 9.0)
    records = run(MTBench(questions=questions), ScriptedModel(reply), judge, tmp_path)
    assert judge.asked == []
    assert [r.value for r in records] == [5.0, 5.0, 5.0, None, 5.0, 5.0]
