"""A second judge in a run: the same answers, its own records and failures, and a report that keeps the two apart."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import harness.model.aligned
from harness.experiment.run import prepare, run_suite
from harness.measure.agreement import Pair, agreement
from harness.run_folder import RunFolder
from harness.seals import read_line, sealed_line
from reports.render import write_report
from reports.run import read_run
from tests.judged_toys import QUESTIONS
from tests.toys import NoProgress, outcome, write_suite

JUDGES = {"judge": {"kind": "toy_rule"}, "second_judge": {"kind": "toy_rule", "rule": "length"}}
CELLS = ["base__n0__s0", "base__n0__s1", "noise__n8__s0", "noise__n8__s1"]


def make_suite(folder: Path, tiny_folders, **changes) -> Path:
    settings = {
        "plugins": ["tests.toys", "tests.judged_toys"],
        "budgets": [8],
        "benchmarks": [{"name": "toy_rated"}, {"name": "toy_bench", "questions": "questions.jsonl"}],
        "variants": [
            {"name": "base", "method": "toy_base"},
            {"name": "noise", "method": "toy_noise", "params": {"scale": 0.2}},
        ],
    }
    path = write_suite(folder, tiny_folders["llama"], **(settings | JUDGES | changes))
    (folder / "triples.jsonl").write_text(
        "".join(json.dumps({"prompt": f"w{i} w20", "chosen": f"w{i}", "rejected": "w3 w4"}) + "\n" for i in range(12))
    )
    return path


def run(suite: Path, out: Path, *overrides: str) -> dict:
    return dict(run_suite(prepare(suite, out, overrides), NoProgress()))


def scores(run_folder: Path) -> list[dict[str, str]]:
    """comparison.csv without the costs."""
    with (run_folder / "report" / "tables" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k.startswith(("variant", "mt_bench", "evenness"))} for row in rows]


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_folders) -> Path:
    return make_suite(tmp_path_factory.mktemp("suite"), tiny_folders)


@pytest.fixture(scope="module")
def finished(suite, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run(suite, out) == {}
    return out


@pytest.fixture
def no_generation(monkeypatch) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(harness.model.aligned, "generate_batches", refuse)


def test_both_judges_rate_the_same_answers_and_their_records_lie_apart(finished):
    for name in CELLS:
        cell = RunFolder(finished).cell(name)
        first, second = cell.records("toy_rated") or [], cell.second.records("toy_rated") or []
        assert len(first) == len(second) == len(QUESTIONS)
        keys = [r.raw["answer_key"] for r in first]
        assert [r.raw["answer_key"] for r in second] == keys
        assert len({cell.answers("toy_rated")[key].text for key in keys}) > 1
        assert {r.raw["by"] for r in first} == {"toy-first-word"}
        assert {r.raw["by"] for r in second} == {"toy-length"}
        assert cell.second.records("toy_bench") is None, "it has no judge, so there is nothing to judge again"


def test_a_second_judge_can_be_added_to_a_finished_run_without_asking_the_models_again(
    suite, tmp_path, tiny_folders, finished, request
):
    alone = make_suite(tmp_path / "alone", tiny_folders, second_judge=None)
    out = tmp_path / "run"
    assert run(alone, out) == {}
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("records/*")}
    request.getfixturevalue("no_generation")
    both = make_suite(tmp_path / "alone", tiny_folders)
    assert run(both, out) == {}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert outcome(out) == outcome(finished), "the same as if it had been there from the beginning"


def test_failed_verdicts_are_named_and_a_rerun_asks_only_the_second_judge(
    finished, tmp_path, tiny_folders, no_generation_after
):
    trouble = tmp_path / "trouble"
    second = {**JUDGES["second_judge"], "fail_while": str(trouble)}
    suite = make_suite(tmp_path / "suite", tiny_folders, second_judge=second)
    trouble.write_text("")
    failures = run(suite, tmp_path / "run")
    assert sorted(failures) == CELLS
    assert failures[CELLS[0]] == ["second judge, toy_rated: 3 of 8 records failed, first: the toy judge was away"]
    report = write_report(tmp_path / "run").read_text()
    assert "| 20 | 0, 12 |" in report and "the toy judge was away" in report and "Warning: not everything" in report
    trouble.write_text("broken")
    failures = run(suite, tmp_path / "run")
    assert failures[CELLS[0]] == ["second judge, toy_rated: RuntimeError: the toy judge broke"]
    assert all(cell.done for cell in read_run(tmp_path / "run").cells), "what the first judge said stands"
    trouble.unlink()
    no_generation_after()
    assert run(suite, tmp_path / "run") == {}
    assert outcome(tmp_path / "run") == outcome(finished)


@pytest.fixture
def no_generation_after(request):
    """Called in the middle of a test, it forbids generation from there on."""
    return lambda: request.getfixturevalue("no_generation")


def test_answers_that_were_not_kept_are_generated_again_and_are_the_same(suite, finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(out / "cells" / CELLS[2] / "answers")
    shutil.rmtree(out / "cells" / CELLS[2] / "second")
    assert run(suite, out) == {}
    assert outcome(out) == outcome(finished)


def test_verdicts_on_other_answers_are_never_paired(suite, finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    records = out / "cells" / CELLS[0] / "records" / "toy_rated.jsonl"
    rows = [read_line(line) for line in records.read_text().splitlines()]
    rows[3]["raw"]["answer_key"] = "of another answer"
    records.write_bytes(b"".join(map(sealed_line, rows)))
    cell = RunFolder(out).cell(CELLS[0])
    assert cell.state is not None
    cell.finish(cell.state)  # nothing is damaged: that is how it was written
    failures = run(suite, out)
    assert list(failures) == [CELLS[0]]
    assert "shown other answers than the first" in failures[CELLS[0]][0]


def test_a_run_belongs_to_its_second_judge_as_to_its_first(suite, finished):
    with pytest.raises(ValueError, match=r"second_judge\.rule"):
        prepare(suite, finished, ["second_judge.rule=first word", "judge.rule=length"])


def test_the_report_keeps_the_judges_apart_and_gives_the_figures_of_their_pairs(finished, tmp_path, tiny_folders):
    text = write_report(finished).read_text()
    assert "## Agreement of the judges" in text
    assert "judged again by `toy-length`" in text and "A toy judge went by the length." in text
    pairs = []
    for name in CELLS:
        cell = RunFolder(finished).cell(name)
        for a, b in zip(cell.records("toy_rated") or [], cell.second.records("toy_rated") or [], strict=True):
            variant, budget, seed = name.split("__")
            pairs.append(Pair(f"{variant} at {budget}", int(seed[1:]), a.cluster, a.value, b.value))
    expected = {figure.statistic: figure for figure in agreement(pairs, "rating")}
    with (finished / "report" / "tables" / "agreement.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["statistic"] for row in rows} == expected.keys()
    for row in rows:
        figure = expected[row["statistic"]]
        assert float(row["value"]) == pytest.approx(figure.value)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((figure.low, figure.high))
        assert (int(row["n"]), row["failed_first"], row["failed_second"]) == (figure.n, "0", "0")

    alone = make_suite(tmp_path / "alone", tiny_folders, second_judge=None)
    assert run(alone, tmp_path / "run") == {}
    without = write_report(tmp_path / "run")
    assert "Agreement of the judges" not in without.read_text()
    tables = [scores(run_folder) for run_folder in (finished, tmp_path / "run")]
    assert tables[0] == tables[1], "no number of the first judge depends on the second"


def test_the_means_table_has_a_row_for_each_judge(finished):
    text = write_report(finished).read_text()
    section = text[text.index("\n\nEach judge's means") :]
    rows = [line for line in section.splitlines() if line.startswith("| `toy-")]
    assert [row.split("|")[1].strip() for row in rows[:2]] == ["`toy-first-word`", "`toy-length`"]
    with (finished / "report" / "tables" / "second_judge.csv").open() as file:
        means = {row["variant"]: row for row in csv.DictReader(file)}
    assert {row["judge"] for row in means.values()} == {"toy-length"}
    values = [r.value for name in CELLS[2:] for r in RunFolder(finished).cell(name).second.records("toy_rated") or []]
    assert float(means["noise"]["mean"]) == pytest.approx(sum(values) / len(values))


def test_a_missing_second_pass_is_reported(finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(out / "cells" / CELLS[1] / "second")
    cell = RunFolder(out).cell(CELLS[1])
    assert cell.state is not None
    cell.finish(cell.state)  # nothing is damaged: it was not judged
    data = read_run(out)
    assert data.unmeasured == [(CELLS[1], "toy_rated, second judge")]
    assert not data.complete


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"judge": None}, "second_judge: a second judge needs a first one"),
        ({"second_judge": JUDGES["judge"]}, "the first judge again"),
        (
            {
                "judge": {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"},
                "second_judge": {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:2/v1"},
            },
            "the first judge again.*where it is asked",
        ),
        ({"second_judge": {"kind": "oracle of delphi"}}, "unknown judge 'oracle of delphi'"),
        ({"second_judge": {"kind": "toy_rule", "strict": 1}}, "unknown key 'strict'"),
        ({"second_judge": {"kind": "toy_rule", "rule": "length", "benchmarks": ["x"]}}, "no benchmark is called 'x'"),
        (
            {"second_judge": {"kind": "toy_rule", "rule": "length", "benchmarks": ["toy_bench"]}},
            "benchmark 'toy_bench' has no judge",
        ),
        (
            {"benchmarks": [{"name": "toy_bench", "questions": "questions.jsonl"}]},
            "no benchmark of the suite needs a judge",
        ),
        (
            {"second_judge": {"kind": "toy_rule", "rule": "length", "made_from": ["W3   w20"]}},
            "1 of the judge's own prompts also occur among the training prompts",
        ),
        ({"judge": {"kind": "toy_rule", "made_from": ["w3 w20"]}}, "judge.*1 of the judge's own prompts also occur"),
    ],
)
def test_second_judges_that_make_no_sense_are_refused_before_any_work(tmp_path, tiny_folders, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        prepare(make_suite(tmp_path, tiny_folders, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["judge", "second_judge"])
def test_a_judge_that_cannot_give_what_a_benchmark_asks_for_is_refused(tmp_path, tiny_folders, key):
    rows = '{"prompt": "w1 w2 w9"}\n'
    for name in ("harmful", "harmless"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    benchmarks = [{"name": "toy_rated"}, {"name": "safety", "harmful": "harmful.jsonl", "harmless": "harmless.jsonl"}]
    benchmarks[1]["max_new_tokens"] = 6
    judges = {"judge": {"kind": "sandbox_oracle"}, "second_judge": None, key: {"kind": "toy_rule"}}
    suite = make_suite(tmp_path, tiny_folders, benchmarks=benchmarks, **judges)
    with pytest.raises(ValueError, match="'safety' asks for harm and refusal, which judge 'toy_rule' cannot give"):
        prepare(suite, tmp_path / "run")
    if key == "second_judge":
        prepare(suite, tmp_path / "run", ["second_judge.benchmarks=[toy_rated]"])
