"""`rejudge`: another judge judges the answers of a finished run; nothing is fitted, loaded or generated."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import harness.experiment.cell
import harness.model.aligned
import harness.model.base
from harness.cli.algebra import commands
from harness.experiment.rejudging import Rejudging, read_judge
from harness.experiment.run import prepare, run_suite
from harness.run_folder import RunFolder
from harness.run_folder.verify import verify
from harness.seals import sealed_text
from reports.run import read_run
from tests.integration.test_second_judge import CELLS, make_suite, run
from tests.judged_toys import ToyRule
from tests.toys import NoProgress, outcome


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folders) -> Path:
    suite = make_suite(tmp_path_factory.mktemp("suite"), tiny_folders)
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run(suite, out) == {}
    return out


@pytest.fixture
def no_model(monkeypatch) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("a model was loaded or asked")

    monkeypatch.setattr(harness.model.base.BaseModel, "load", refuse)
    monkeypatch.setattr(harness.model.aligned, "generate_batches", refuse)
    monkeypatch.setattr(harness.model.aligned.AlignedModel, "load", refuse)


LENGTH = ["judge.rule=length"]


def test_another_judge_judges_the_same_answers_without_a_model(finished, tmp_path, tiny_folders, no_model):
    out = tmp_path / "again"
    options = ["--judge", "toy_rule", "--set", "judge.rule=length", "--out", str(out)]
    called = CliRunner().invoke(commands, ["rejudge", str(finished), *options])
    assert called.exit_code == 0, called.output
    assert f"4 cells, 4 to judge by toy-length on toy_rated, in {out}" in called.output
    new, old = RunFolder.open(out), RunFolder(finished)
    for name in CELLS:
        # The same verdicts as those of the run's second judge, on the same answers.
        assert new.cell(name).records("toy_rated") == old.cell(name).second.records("toy_rated")
        assert new.cell(name).records("toy_bench") == old.cell(name).records("toy_bench")
        assert not new.cell(name).second.path.exists()
    assert verify(new, thorough=True) == []
    data = read_run(out)
    assert data.complete and data.origins == {"toys": 4}
    assert (data.plan.name, data.environment.second_judge) == ("toys-by-toy-length", None)
    text = (out / "report" / "report.md").read_text()
    assert "Judged again: fits and answers are those of the run toys of" in text
    assert "which toy-first-word judged; the verdicts on toy\\_rated here are toy-length's." in text
    called = CliRunner().invoke(commands, ["rejudge", str(finished), *options])
    assert called.exit_code == 0 and "4 cells, 0 to judge" in called.output


def test_it_is_what_a_run_with_that_judge_would_have_been(finished, tmp_path, tiny_folders):
    again = Rejudging.of(finished, "toy_rule", LENGTH, out=tmp_path / "again")
    assert again.run(NoProgress()) == {}
    judge = {"kind": "toy_rule", "rule": "length"}
    suite = make_suite(tmp_path / "suite", tiny_folders, judge=judge, second_judge=None, name="toys-by-toy-length")
    assert run(suite, tmp_path / "anew") == {}
    assert outcome(tmp_path / "again") == outcome(tmp_path / "anew")
    # The suite it keeps is this run's, and goes on with it.
    progress = NoProgress()
    assert run_suite(prepare(tmp_path / "again" / "suite.yaml", tmp_path / "again"), progress) == {}
    assert progress.told == []


def test_failed_verdicts_are_named_and_the_same_command_asks_for_them_again(finished, tmp_path, no_model):
    trouble = tmp_path / "trouble"
    trouble.write_text("")
    file = tmp_path / "judge.yaml"
    file.write_text(yaml.safe_dump({"kind": "toy_rule", "rule": "length", "fail_while": str(trouble)}))
    command = ["rejudge", str(finished), "--judge", str(file), "--out", str(tmp_path / "again")]
    called = CliRunner().invoke(commands, command)
    assert called.exit_code == 1
    assert "3 of 8 records failed, first: the toy judge was away" in called.output
    trouble.write_text("broken")
    assert "RuntimeError: the toy judge broke" in CliRunner().invoke(commands, command).output
    trouble.unlink()
    assert CliRunner().invoke(commands, command).exit_code == 0
    assert read_run(tmp_path / "again").complete


def test_a_killed_one_goes_on_with_the_cells_that_are_left(finished, tmp_path, monkeypatch, no_model):
    evaluate, seen = harness.experiment.cell.evaluate, []

    def killed(*args, **kwargs):
        seen.append(kwargs["folder"].path.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr("harness.experiment.rejudging.evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        Rejudging.of(finished, "toy_rule", LENGTH, out=tmp_path / "again").run(NoProgress())
    assert Rejudging.of(finished, "toy_rule", LENGTH, out=tmp_path / "again").run(NoProgress()) == {}
    assert len(seen) == 5 and sorted({*seen}) == CELLS


def test_what_is_asked_for_later_is_judged_by_the_new_judge_too(tmp_path, tiny_folders):
    benchmarks = [{"name": "toy_rated", "as": None}, {"name": "toy_rated", "as": "more"}]
    suite, variants = tmp_path / "suite", [{"name": "base", "method": "toy_base"}]
    made = make_suite(suite, tiny_folders, second_judge=None, benchmarks=benchmarks, variants=variants, seeds=1)
    assert run(made, tmp_path / "run") == {}
    out = tmp_path / "again"
    for asked in (["toy_rated"], ["toy_rated", "more"]):
        again = Rejudging.of(tmp_path / "run", "toy_rule", LENGTH, benchmarks=asked, out=out)
        assert again.run(NoProgress()) == {}
        cell = RunFolder(out).cell(CELLS[0])
        assert all({r.raw["by"] for r in cell.records(name) or ()} == {"toy-length"} for name in asked)
        assert verify(RunFolder(out), thorough=True) == []


def test_what_is_damaged_is_copied_and_judged_again_by_the_same_command(finished, tmp_path, no_model):
    def judge(out: Path) -> dict:
        return outcome(out) if Rejudging.of(finished, "toy_rule", LENGTH, out=out).run(NoProgress()) == {} else {}

    whole = judge(tmp_path / "again")
    cells = tmp_path / "again" / "cells"
    (cells / CELLS[0] / "artifact" / "aligned.json").write_text("{")
    (cells / CELLS[1] / "answers" / "toy_rated.jsonl").unlink()
    (cells / CELLS[2] / "records" / "toy_bench.jsonl").unlink()
    (cells / CELLS[3] / "records" / "toy_rated.jsonl").write_text("{")
    assert judge(tmp_path / "again") == whole
    assert verify(RunFolder(tmp_path / "again"), thorough=True) == []


def test_a_new_run_of_a_long_name_has_a_name_that_a_suite_may_have(finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    data = yaml.safe_load((copy / "suite.yaml").read_text())
    (copy / "suite.yaml").write_text(sealed_text(yaml.safe_dump({**data, "name": "n" * 100}, sort_keys=False)))
    again = Rejudging.of(copy, "toy_rule", LENGTH)
    assert again.prepared.folder.path.name == f"{'n' * 86}-by-toy-length"


def test_cells_without_all_their_answers_are_left_out_and_named(finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / "cells" / CELLS[0] / "cell.json").unlink()
    gone = RunFolder(copy).cell(CELLS[1])
    state = gone.state
    assert state is not None
    (gone.path / "answers" / "toy_rated.jsonl").unlink()
    gone.finish(state)
    again = Rejudging.of(copy, "toy_rule", LENGTH, out=tmp_path / "again")
    assert again.left_out == {CELLS[0]: "not run to its end", CELLS[1]: "toy_rated: not all answers are kept"}
    assert again.run(NoProgress()) == {}
    data = read_run(tmp_path / "again")
    assert data.complete and [cell.planned.name for cell in data.cells] == CELLS[2:]
    assert any("2 cells of that run could not be judged again" in note for note in data.environment.notes)


def test_the_dry_run_counts_verdicts_and_writes_nothing(finished, tmp_path):
    options = ["--judge", "toy_rule", "--set", "judge.rule=length", "--dry-run", "--out", str(tmp_path / "again")]
    called = CliRunner().invoke(commands, ["rejudge", str(finished), *options])
    assert called.exit_code == 0, called.output
    assert "not counted, because they do not say what they ask: toy_rated" in called.output
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("judge", "more", "complaint"),
    [
        ("toy_rule", {}, "toy-first-word is the judge that judged this run"),
        ("toy_rool", {}, "neither a file nor a kind of judge; known: .*toy_rule.*did you mean"),
        ("toy_rule", {"settings": ["judge.strict=1"]}, "--judge toy_rule: strict: unknown key 'strict'"),
        ("toy_rule", {"settings": ["seed=3"]}, "--set seed=3: only settings of the judge can be given"),
        ("toy_rule", {"settings": LENGTH, "benchmarks": ["toy_bench"]}, "--benchmark 'toy_bench' is none that a judge"),
        ("toy_rule", {"settings": LENGTH, "max_cost": 1.0}, "--max-cost: judge 'toy_rule' costs nothing"),
        (
            "toy_rule",
            {"settings": [*LENGTH, 'judge.made_from=["w3 w20"]']},
            "1 of the judge's own prompts also occur among the training prompts",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(finished, tmp_path, judge, more, complaint):
    with pytest.raises(ValueError, match=complaint):
        Rejudging.of(finished, judge, out=tmp_path / "again", **more)
    assert not (tmp_path / "again").exists()


def test_a_judge_that_cannot_give_what_is_asked_for_is_refused(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyRule, "verbs", frozenset({"compare"}))
    with pytest.raises(ValueError, match="cannot judge everything here: toy_rated asks for rate; give another judge"):
        Rejudging.of(finished, "toy_rule", LENGTH, out=tmp_path / "again")


def test_folders_that_cannot_be_it_are_refused(finished, tmp_path, tiny_folders):
    with pytest.raises(ValueError, match="is the run itself"):
        Rejudging.of(finished, "toy_rule", LENGTH, out=finished)
    shutil.copytree(finished, tmp_path / "other")
    with pytest.raises(ValueError, match="belongs to another suite; these differ:"):
        Rejudging.of(finished, "toy_rule", LENGTH, out=tmp_path / "other")
    with pytest.raises(ValueError, match="is not a run folder"):
        Rejudging.of(tmp_path, "toy_rule", LENGTH)


def test_paths_of_a_judge_start_at_its_file_and_end_up_relative_to_the_run(tmp_path):
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "rows.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    file = tmp_path / "judges" / "judge.yaml"
    file.write_text(yaml.safe_dump({"judge": {"kind": "reward", "triples": "rows.jsonl", "base": {"path": "model"}}}))
    found = read_judge(str(file), ["judge.training.epochs=2"], tmp_path / "run")
    assert found == {
        "kind": "reward",
        "triples": "../judges/rows.jsonl",
        "base": {"path": "../judges/model"},
        "training": {"epochs": 2},
    }
    (tmp_path / "none.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match="give `kind:` and its settings, or a suite that has `judge:`"):
        read_judge(str(tmp_path / "none.yaml"), [], tmp_path)
