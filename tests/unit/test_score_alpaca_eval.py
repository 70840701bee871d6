"""`dspa-bench score alpaca-eval`: the package's figures from annotation files, with failures counted."""

import csv
import io
import json
import sys

import pandas as pd
import pytest

from harness.cli.app import main
from tasks.alpaca_eval import AlpacaEval
from tests.unit.scripted import ScriptedJudge, ScriptedModel


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path / "none"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dspa-bench", "score", "alpaca-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def table(out):
    return {(r["model"], r["metric"]): r for r in csv.DictReader(io.StringIO(out))}


def annotation(preference, model="m", **more):
    texts = {"instruction": "a", "output_1": "bb", "output_2": "cccc"}
    return {**texts, "generator_1": "base", "generator_2": model, "annotator": "j", "preference": preference, **more}


def write(tmp_path, rows):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_failures_are_counted_and_never_scored(call, tmp_path):
    rows = [annotation(2), annotation(None), annotation(1.5), annotation(0), annotation(-1), annotation(1.25, "other")]
    code, out, err = call(write(tmp_path, rows))
    assert code == 0
    assert out.splitlines()[:2] == ["model,metric,value,n,failures", "m,win_rate,66.6666666666667,3,2"]
    found = table(out)
    assert float(found["m", "standard_error"]["value"]) == pytest.approx(100 / 6)
    assert (found["m", "avg_length"]["value"], found["m", "avg_length"]["n"]) == ("4", "5")
    assert found["other", "win_rate"]["value"] == "25"
    assert found["other", "standard_error"]["value"] == ""
    assert ("m", "lc_win_rate") not in found
    assert err.splitlines()[0].startswith("m: no length-controlled win rate: instruction difficulties are missing in ")
    assert "`dspa-bench data fetch alpaca_eval`" in err


def test_nothing_but_failures_has_no_value(call, tmp_path):
    found = table(call(write(tmp_path, [annotation(None), annotation(None)]))[1])
    assert (found["m", "win_rate"]["value"], found["m", "win_rate"]["n"], found["m", "win_rate"]["failures"]) == (
        "",
        "0",
        "2",
    )


def test_our_own_annotations_score_as_the_leaderboard_says(call, tmp_path):
    rows = [{"instruction": f"Say {i}", "output": "o" * i, "generator": "ref"} for i in range(1, 9)]
    (tmp_path / "references.json").write_text(json.dumps(rows), encoding="utf-8")
    judge = ScriptedJudge(compare=lambda c: None if "7" in c.prompt[0]["content"] else 1 + len(c.answers[1]) / 20)
    benchmark = AlpacaEval(references=tmp_path / "references.json")
    records = list(benchmark.run(ScriptedModel(lambda _: "xxx"), judge=judge, seed=1, folder=tmp_path))
    board = pd.read_csv(tmp_path / "leaderboard.csv", index_col=0).iloc[0]
    found = table(call(tmp_path / "annotations.json")[1])
    values = [r.value for r in records if r.value is not None]
    rate = found["scripted-ffffffffffff", "win_rate"]
    assert float(rate["value"]) == pytest.approx(board["win_rate"], abs=1e-9)
    assert float(rate["value"]) == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert (rate["n"], rate["failures"]) == ("7", "1")
    assert float(found["scripted-ffffffffffff", "avg_length"]["value"]) == board["avg_length"]


def test_verdicts_of_two_annotators_are_not_mixed(call, tmp_path):
    code, out, err = call(write(tmp_path, [annotation(1), annotation(2, annotator="k")]))
    assert (code, out) == (2, "")
    assert (
        err
        == "error: m has verdicts of several annotators (j, k), whose mean would say nothing; give a file for each\n"
    )


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ({}, "expected a non-empty JSON list"),
        ([], "expected a non-empty JSON list"),
        ([3], "entry 1: expected an object with instruction, output_1, output_2, preference, got int"),
        ([annotation(1, output_2=None)], "entry 1: 'output_2' must be a string, got None"),
        ([{"instruction": "a", "output_1": "b", "preference": 1}], "entry 1: missing output_2 (a string)"),
        (
            [{k: v for k, v in annotation(1).items() if k != "preference"}],
            "entry 1: missing preference (a number from 1",
        ),
        ([annotation("1")], "entry 1: 'preference' must be a number from 1 to 2, or null for a failed verdict, got"),
        ([annotation(True)], "entry 1: 'preference' must be a number"),
        ([annotation(1, instruction=" ")], "entry 1: 'instruction' must be a non-empty string, got ' '"),
    ],
)
def test_malformed_annotations_are_refused_with_their_place(call, tmp_path, rows, complaint):
    code, out, err = call(write(tmp_path, rows))
    assert (code, out) == (2, "")
    assert complaint in err


def test_a_missing_file_is_named(call, tmp_path):
    code, _, err = call(tmp_path / "no.json")
    assert code == 2
    assert "no.json' does not exist" in err
