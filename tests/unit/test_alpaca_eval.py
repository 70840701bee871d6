"""AlpacaEval through the package: our judge as annotator, its win rate, its files, nothing elsewhere."""

import importlib.util
import json
import logging
import os
from pathlib import Path

import pytest

from harness.evaluators.alpaca_eval.evaluate import evaluate
from harness.evaluators.alpaca_eval.length_control import LengthControl
from tasks.alpaca_eval import AlpacaEval
from tests.unit.scripted import ScriptedJudge, ScriptedModel

REFERENCES = [
    {"instruction": "Say a", "output": "a", "generator": "ref", "dataset": "d1"},
    {"instruction": "Say b", "output": "bb", "generator": "ref", "dataset": "d1"},
    {"instruction": "Say c", "output": "ccc", "generator": "ref", "dataset": "d2"},
    {"instruction": "Say d", "output": "dddd", "generator": "ref", "dataset": "d2"},
]


def longer_is_better(comparison):
    difference = len(comparison.answers[1]) - len(comparison.answers[0])
    return 1.5 + max(-0.5, min(0.5, difference / 4))


@pytest.fixture
def references(tmp_path):
    path = tmp_path / "reference_outputs.json"
    path.write_text(json.dumps(REFERENCES), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(path, reply, judge, folder=None, **settings):
    benchmark = AlpacaEval(references=path, **settings)
    return list(benchmark.run(ScriptedModel(reply), judge=judge, seed=1, folder=folder))


def leaderboard(folder):
    import pandas as pd

    return pd.read_csv(folder / "leaderboard.csv", index_col=0).iloc[0]


def test_the_mean_of_our_records_is_the_packages_win_rate(references, folder):
    records = run(references, lambda c: "xx", ScriptedJudge(compare=longer_is_better), folder)
    assert [r.value for r in records] == [75.0, 50.0, 25.0, 0.0]
    assert leaderboard(folder)["win_rate"] == pytest.approx(sum(r.value for r in records) / 4, abs=1e-9)
    assert leaderboard(folder)["n_total"] == 4
    assert [r.item for r in records] == ["0", "1", "2", "3"]


def test_a_liking_for_the_first_position_cancels(references):
    records = run(references, lambda c: "xx", ScriptedJudge(compare=lambda _: 1.0))
    assert [r.value for r in records] == [50.0] * 4


def test_the_judge_sees_every_pair_in_both_positions_under_its_own_instruction(references):
    judge = ScriptedJudge(compare=longer_is_better)
    run(references, lambda c: f"answer to {c[-1]['content']}", judge)
    seen = {(c.prompt[0]["content"], *c.answers) for c in judge.asked}
    for row in REFERENCES:
        text = row["instruction"]
        assert (text, row["output"], f"answer to {text}") in seen
        assert (text, f"answer to {text}", row["output"]) in seen
    assert len(judge.asked) == 8


def test_an_answer_equal_to_the_reference_is_a_tie_without_asking(references):
    judge = ScriptedJudge(compare=lambda c: 2.0 if c.answers[1] == "x" else 1.0)
    records = run(references, lambda c: "bb" if "b" in c[0]["content"] else "x", judge)
    assert [r.value for r in records] == [100.0, 50.0, 100.0, 100.0]
    assert len(judge.asked) == 6


@pytest.mark.parametrize("position", ["first", "second", "both"])
def test_a_failed_verdict_is_an_error_and_the_package_counts_the_rest(references, folder, position):
    def compare(comparison):
        is_c = comparison.prompt[0]["content"] == "Say c"
        straight = comparison.answers[0] == "ccc"
        failing = {"first": straight, "second": not straight, "both": True}[position]
        return None if is_c and failing else 2.0 - (comparison.answers[0] == "x")

    records = run(references, lambda c: "x", ScriptedJudge(compare=compare), folder)
    assert (records[2].value, records[2].error) == (None, "cannot be parsed")
    assert "no rating in here" in records[2].raw["verdicts"]
    kept = [r.value for r in records if r.value is not None]
    assert (kept, leaderboard(folder)["n_total"]) == ([100.0] * 3, 3)
    assert leaderboard(folder)["win_rate"] == pytest.approx(100.0)


def test_all_verdicts_failing_gives_only_errors(references, folder):
    records = run(references, lambda c: "x", ScriptedJudge(compare=lambda _: None), folder)
    assert [r.value for r in records] == [None] * 4
    assert leaderboard(folder)["n_total"] == 0


def test_an_answer_that_could_not_be_made_is_an_error_and_is_not_judged(references, folder):
    def reply(conversation):
        if "Say b" in conversation[0]["content"]:
            raise ValueError("too long")
        return "x"

    judge = ScriptedJudge(compare=lambda c: 2.0 - (c.answers[0] == "x"))
    records = {r.item: r for r in run(references, reply, judge, folder)}
    assert (records["1"].value, records["1"].error) == (None, "no answer: too long")
    assert [records[i].value for i in "023"] == [100.0] * 3
    assert len(judge.asked) == 6
    assert len(json.loads((folder / "model_outputs.json").read_text(encoding="utf-8"))) == 3


def test_repeated_instructions_are_not_crossed_with_each_other(tmp_path, folder):
    path = tmp_path / "twice.json"
    rows = [{**REFERENCES[0], "output": text} for text in ("a", "bbb", "a")]
    path.write_text(json.dumps(rows), encoding="utf-8")
    records = run(path, lambda c: "xx", ScriptedJudge(compare=longer_is_better), folder)
    assert [r.value for r in records] == [75.0, 25.0, 75.0]
    assert leaderboard(folder)["win_rate"] == pytest.approx(sum([75.0, 25.0, 75.0]) / 3)


def test_more_instructions_than_one_chunk_of_the_package_keep_their_order(tmp_path):
    path = tmp_path / "many.json"
    rows = [{"instruction": f"Say {i}", "output": "o" * (i % 5), "generator": "ref"} for i in range(300)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    records = run(path, lambda c: "xx", ScriptedJudge(compare=longer_is_better))
    expected = [100 * (longer_is_better_than("o" * (i % 5), "xx") - 1) for i in range(300)]
    assert [r.value for r in records] == expected


def longer_is_better_than(reference, answer):
    return 1.5 + max(-0.5, min(0.5, (len(answer) - len(reference)) / 4))


def test_model_outputs_are_in_alpacaevals_format(references, folder):
    run(references, lambda c: "xx", ScriptedJudge(compare=longer_is_better), folder)
    rows = json.loads((folder / "model_outputs.json").read_text(encoding="utf-8"))
    assert rows[2] == {"instruction": "Say c", "output": "xx", "generator": "scripted-ffffffffffff", "dataset": "d2"}
    annotations = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    assert [(a["instruction"], a["output_1"], a["output_2"], a["preference"]) for a in annotations[:2]] == [
        ("Say a", "a", "xx", 1.75),
        ("Say b", "bb", "xx", 1.5),
    ]
    assert annotations[0]["annotator"] == "scripted-v1"


def test_nothing_is_written_outside_the_folder(references, folder, tmp_path, monkeypatch):
    spec = importlib.util.find_spec("alpaca_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run(references, lambda c: "xx", ScriptedJudge(compare=longer_is_better))  # its imports may write bytecode

    def state():
        files = [p for p in package.rglob("*") if p.is_file()]
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}

    before = state()
    run(references, lambda c: "xx", ScriptedJudge(compare=longer_is_better), folder)
    run(references, lambda c: "xx", ScriptedJudge(compare=longer_is_better))
    assert state() == before
    assert os.listdir(elsewhere) == []
    assert sorted(os.listdir(folder)) == ["annotations.json", "leaderboard.csv", "model_outputs.json"]


def test_the_package_leaves_logging_and_stderr_alone(references, folder, capfd):
    root = logging.getLogger()
    before = (root.level, root.handlers[:], root.manager.disable)
    run(references, lambda c: "xx", ScriptedJudge(compare=longer_is_better), folder)
    assert (root.level, root.handlers[:], root.manager.disable) == before
    assert capfd.readouterr() == ("", "")


def test_generation_settings_reach_the_model(references):
    model = ScriptedModel(lambda _: "xx")
    benchmark = AlpacaEval(references=references, max_new_tokens=9, temperature=0.4, batch_size=2)
    list(benchmark.run(model, judge=ScriptedJudge(compare=longer_is_better), seed=8))
    settings = {key: model.calls[0][key] for key in ("max_new_tokens", "temperature", "batch_size", "seed")}
    assert settings == {"max_new_tokens": 9, "temperature": 0.4, "batch_size": 2, "seed": 8}


def test_prompts_are_the_instructions_and_a_judge_is_needed(references):
    assert AlpacaEval(references=references).prompts() == [row["instruction"] for row in REFERENCES]
    with pytest.raises(ValueError, match="needs a judge"):
        run(references, lambda c: "xx", None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[\n{]", r"\.json:2: not valid JSON"),
        ("{}", "non-empty JSON list"),
        ("[]", "non-empty JSON list"),
        ('[{"instruction": "a", "output": "b"}, 3]', "entry 2: expected an object"),
        ('[{"instruction": "a"}]', r"entry 1: missing output \(a string\)"),
        ('[{"instruction": " ", "output": "b"}]', "entry 1: 'instruction' must be a non-empty string"),
    ],
)
def test_malformed_references_are_reported_with_their_place(references, text, complaint):
    references.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        AlpacaEval(references=references).check()


def test_missing_references_are_reported(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        AlpacaEval(references=tmp_path / "no.json").check()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with references, and difficulties of eight instructions."""
    folder = tmp_path / "data" / "alpaca_eval"
    (folder / "model_outputs").mkdir(parents=True)
    rows = [{"instruction": f"Say {i}", "output": "o" * (3 + i), "generator": "ref"} for i in range(8)]
    for name in ("gpt4_1106_preview", "text_davinci_003"):
        (folder / "model_outputs" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    lines = [",difficulty", *(f"{i},{(i - 4) / 3}" for i in range(8))]
    (folder / "instruction_difficulty.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path / "data"))
    return folder


def test_references_go_by_name_and_lengths_are_controlled_where_the_inputs_are(data, folder):
    benchmark = AlpacaEval.model_validate({"reference": "v2", "length_control": "noreg"})
    benchmark.check()
    assert [metric.name for metric in benchmark.metrics] == ["alpaca_eval", "alpaca_eval_lc_noreg"]
    assert "without its regularisation" in benchmark.notes[0]
    records = list(
        benchmark.run(
            ScriptedModel(lambda c: "x" * (int(c[-1]["content"][-1]) ** 2 % 7 + 1)),
            judge=ScriptedJudge(compare=lambda c: 1.1 if "o" in c.answers[0] else 1.9),
            seed=1,
            folder=folder,
        )
    )
    row = leaderboard(folder)
    for metric, column in (("alpaca_eval", "win_rate"), ("alpaca_eval_lc_noreg", "length_controlled_winrate_noreg")):
        values = [r.value for r in records if r.metric == metric]
        assert len(values) == 8
        assert sum(values) / 8 == pytest.approx(row[column], abs=1e-9)
    assert {"standard_error", "lc_standard_error_noreg", "avg_length"} <= set(row.index)
    assert all("glm_preference" in a for a in json.loads((folder / "annotations.json").read_text(encoding="utf-8")))


def test_what_fails_has_no_length_controlled_value_either(data, folder):
    benchmark = AlpacaEval.model_validate({"reference": "v1", "length_control": "noreg"})

    def reply(conversation):
        if "Say 2" in conversation[0]["content"]:
            raise ValueError("too long")
        return "x" * (int(conversation[-1]["content"][-1]) ** 2 % 7 + 1)

    judge = ScriptedJudge(
        compare=lambda c: None if c.prompt[0]["content"] == "Say 5" else 1.1 + 0.8 * ("x" in c.answers[0])
    )
    records = {(r.metric, r.item): r for r in benchmark.run(ScriptedModel(reply), judge=judge, seed=1, folder=folder)}
    assert len(records) == 16
    for metric in ("alpaca_eval", "alpaca_eval_lc_noreg"):
        assert records[metric, "2"].error == "no answer: too long"
        assert records[metric, "5"].error == "cannot be parsed"
    values = [r.value for (metric, _), r in records.items() if metric == "alpaca_eval_lc_noreg" and r.value is not None]
    assert sum(values) / 6 == pytest.approx(leaderboard(folder)["length_controlled_winrate_noreg"], abs=1e-9)


@pytest.mark.parametrize("wanted", ["auto", "noreg"])
def test_a_regression_that_cannot_be_fitted_is_an_error_only_where_it_was_asked_for(data, monkeypatch, wanted):
    load = LengthControl.load
    monkeypatch.setattr(LengthControl, "load", lambda folder, _: load(folder, "noreg"))  # eight instructions suffice
    benchmark = AlpacaEval.model_validate({"reference": "v1", "length_control": wanted})
    judge = ScriptedJudge(compare=lambda c: None if c.prompt[0]["content"] > "Say 2" else 1.4)
    records = list(benchmark.run(ScriptedModel(lambda _: "xx"), judge=judge, seed=1))
    reasons = {r.error for r in records if r.metric == "alpaca_eval_lc_noreg"}
    why = "at least 5 verdicts are needed, there are 3"
    assert (why in reasons) if wanted == "noreg" else not reasons
    assert {r.raw["no_length_control"] for r in records if r.metric == "alpaca_eval"} == {why}
    assert sum(r.value is not None for r in records if r.metric == "alpaca_eval") == 3


def test_without_its_inputs_there_is_no_length_control_and_the_notes_say_why(data, references):
    other = AlpacaEval(references=references)
    assert [metric.name for metric in other.metrics] == ["alpaca_eval"]
    assert "those of AlpacaEval's own instructions; these are own questions" in other.notes[0]
    assert AlpacaEval(references=references, length_control="off").notes == ()
    with pytest.raises(ValueError, match=r"length_control: v1 is not available: .*df_gamed\.csv is missing"):
        AlpacaEval.model_validate({"reference": "v2", "length_control": "v1"}).check()
    few = AlpacaEval.model_validate({"reference": "v2"})
    assert "the difficulties are not those of AlpacaEval's 805 instructions" in few.notes[0]
    (data / "instruction_difficulty.csv").unlink()
    missing = AlpacaEval.model_validate({"reference": "v2"})
    missing.check()
    assert "get them with `dspa-bench data fetch alpaca_eval`" in missing.notes[0]


def test_the_inputs_of_the_length_control_are_part_of_the_identity(data):
    settings = {"reference": "v2", "length_control": "noreg"}
    before = AlpacaEval.model_validate(settings).model_dump()["length_control_inputs"]
    assert before.startswith("noreg ")
    text = (data / "instruction_difficulty.csv").read_text().replace("7,1.0", "7,1.5")
    (data / "instruction_difficulty.csv").write_text(text)
    assert AlpacaEval.model_validate(settings).model_dump()["length_control_inputs"] != before
    assert AlpacaEval.model_validate({"reference": "v2", "length_control": "off"}).length_control_inputs == "none"


def test_named_references_that_are_not_there_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"text_davinci_003\.json is missing; get it with `dspa-bench data fetch"):
        AlpacaEval.model_validate({"reference": "v1"}).check()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"reference": "v1", "references": "x.json"}, "either `reference`"),
        ({"reference": "v3"}, "Input should be 'v1' or 'v2'"),
        ({}, "references"),
        ({"reference": "v1", "annotator": "a", "annotator_config": "b"}, "either `annotator`"),
        ({"reference": "v1", "annotator_url": "http://x/v1"}, "need `annotator`"),
        ({"reference": "v1", "annotator": "a", "annotator_url": "x"}, "is no address"),
    ],
)
def test_contradictory_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        AlpacaEval.model_validate(settings)


def test_an_annotator_of_the_package_takes_the_judges_place(references, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEYS", raising=False)
    monkeypatch.delenv("OPENAI_CLIENT_CONFIG_PATH", raising=False)
    benchmark = AlpacaEval(references=references, annotator="alpaca_eval_llama3_70b_fn", length_control="off")
    assert (benchmark.needs_judge, benchmark.asks) == (False, frozenset())
    assert "alpaca_eval's annotator alpaca_eval_llama3_70b_fn" in benchmark.notes[0]
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        benchmark.check()
    assert AlpacaEval(references=references).needs_judge


def test_published_verdicts_give_the_published_win_rate(data_folder):
    import pandas as pd

    folder = data_folder / "alpaca_eval"
    rows = json.loads((folder / "annotations_v2" / "alpaca-7b.json").read_text(encoding="utf-8"))
    verdicts = {(r["instruction"], r["output_1"], r["output_2"]): r["preference"] for r in rows}

    def compare(c):
        text = c.prompt[0]["content"]
        if (text, *c.answers) in verdicts:
            return verdicts[text, *c.answers]
        return 3 - verdicts[text, *c.answers[::-1]]

    result = evaluate(
        [{"instruction": r["instruction"], "output": r["output_2"], "generator": "alpaca-7b"} for r in rows],
        [{"instruction": r["instruction"], "output": r["output_1"], "generator": "gpt4"} for r in rows],
        ScriptedJudge(compare=compare),
        folder=None,
    )
    published = pd.read_csv(folder / "leaderboards" / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv", index_col=0)
    assert result.leaderboard["win_rate"] == pytest.approx(published.loc["alpaca-7b", "win_rate"], abs=1e-9)
