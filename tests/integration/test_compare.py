"""`compare`: runs that start from the same things become one run with one report; what differs is refused by name."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli.algebra import commands
from harness.experiment.merging import Merged
from harness.experiment.run import prepare, run_suite
from harness.experiment.suite import load_suite
from harness.judging.ledger import Ledger, read_accounts
from harness.run_folder import RunFolder
from harness.run_folder.verify import repair_command, verify
from reports.render import write_report
from reports.run import read_run
from tests.toys import NoProgress, cell_states, write_suite

BASE = {"name": "base", "method": "toy_base"}
WEAK = {"name": "noise", "method": "toy_noise", "params": {"scale": 0.2, "sae": "one"}, "sweep": {"scale": [0.1]}}
STRONG = {"name": "noise", "method": "toy_noise", "label": "Noise!", "params": {"scale": 0.4, "sae": "one"}}
FLAT = {"name": "flat", "method": "toy_noise", "params": {"scale": 0.3}}


class Runs:
    """Makes runs of toys below a folder."""

    def __init__(self, folder: Path, tiny_folders) -> None:
        self.folder, self.tiny = folder, tiny_folders

    def __call__(self, name: str, variants: list, *, sae: str = "input", model: str = "llama", **changes) -> Path:
        settings = {"name": name, "variants": variants, "saes": {"one": {"path": str(self.tiny[sae])}}, "seeds": 1}
        path = write_suite(self.folder / f"{name}-suite", self.tiny[model], **(settings | changes))
        assert run_suite(prepare(path, self.folder / name), NoProgress()) == {}
        return self.folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folders) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), tiny_folders)


@pytest.fixture(scope="module")
def first(runs) -> Path:
    return runs("first", [BASE, WEAK], budgets=[4])


@pytest.fixture(scope="module")
def second(runs) -> Path:
    return runs("second", [BASE, WEAK, FLAT], budgets=[8], seeds=2)


def test_runs_become_one_with_all_variants_budgets_and_seeds(first, second, tmp_path):
    out = tmp_path / "both"
    called = CliRunner().invoke(commands, ["compare", str(first), str(second), "--out", str(out)])
    assert called.exit_code == 0, called.output
    assert "This compares cells of 2 runs: first" in called.output
    assert "3 of 10 combinations of variant, budget and seed are in none of them" in called.output
    run = RunFolder.open(out)
    assert list(run.plan.labels) == ["base", "noise", "flat"]
    assert (run.plan.name, run.plan.budgets, run.plan.seeds) == ("first-and-second", (4, 8), 2)
    assert {cell.name for cell in run.plan.cells} == {
        *(cell.name for path in (first, second) for cell in RunFolder(path).plan.cells)
    }
    assert {name: state.origin for name, state in cell_states(out).items() if name.startswith("base")} == {
        "base__n0__s0": "first",
        "base__n0__s1": "second",
    }
    assert verify(run, thorough=True) == []
    data = read_run(out)
    assert data.complete and data.origins == {"first": 3, "second": 6}
    text = (out / "report" / "report.md").read_text()
    assert "first-and-second" in text and "This compares cells of 2 runs" in text
    pairs = (out / "report" / "tables" / "pairs.csv").read_text()
    assert "flat" in pairs and "noise" in pairs
    # Made once more, it takes the place of the first.
    Merged.of([str(second), str(first)], out).write()
    assert RunFolder.open(out).plan.name == "second-and-first"


def test_what_is_damaged_is_mended_by_the_command_that_is_named(first, second, tmp_path, monkeypatch, call):
    out = tmp_path / "both"
    monkeypatch.setenv("HOME", str(first.parent))
    assert call("compare", first, second, "--out", out)[0] == 0
    command = shlex.split(repair_command(RunFolder(out)))
    assert command == ["dspa-bench", "compare", "~/first", "~/second", "--out", str(out)]
    (out / "plan.json").write_bytes(b"")
    (out / "cells" / "base__n0__s0" / "cell.json").write_text("{")
    (out / "suite.yaml").unlink()
    assert len(verify(RunFolder(out), thorough=True)) >= 2
    Merged.of([str(first), str(second)], out).write()
    assert verify(RunFolder.open(out), thorough=True) == []


def test_a_comparison_whose_environment_is_damaged_is_made_again_from_its_runs(first, second, tmp_path, call):
    out, run = tmp_path / "both", Path(shutil.copytree(first, tmp_path / "first"))
    assert call("compare", first, second, "--out", out)[0] == 0
    for folder in (out, run):
        (folder / "environment.json").write_text("{")
    code, _, said = call("report", out)
    assert code == 2 and f"dspa-bench compare RUN RUN ... --out {out}" in said
    assert call("compare", first, second, "--out", out)[0] == 0
    assert verify(RunFolder.open(out), thorough=True) == []
    code, _, said = call("compare", first, second, "--out", run)
    assert code == 2 and "is a run with cells of its own" in said


def test_the_records_are_those_of_the_runs_and_models_can_be_loaded(first, second, tmp_path):
    from harness.model.aligned import AlignedModel

    run = Merged.of([str(first), str(second)], tmp_path / "a" / "both").write()
    for cell in run.plan.cells:
        home = next(path for path in (first, second) if (path / "cells" / cell.name).is_dir())
        assert run.cell(cell.name).records("toy_bench") == RunFolder(home).cell(cell.name).records("toy_bench")
    AlignedModel.load(run.cell("noise__n4__s0").artifact)


def test_the_suite_of_the_whole_goes_on_with_it(first, second, tmp_path):
    out = tmp_path / "both"
    before = cell_states(Merged.of([str(first), str(second)], out).write().path)
    progress = NoProgress()
    assert run_suite(prepare(out / "suite.yaml", out), progress) == {}
    made = {told[0] for told in progress.told if told[1] == "over"}
    assert made == {"flat__n4__s0", "flat__n4__s1", "noise__n4__s1"}
    assert {name: cell_states(out)[name] for name in before} == before
    with pytest.raises(ValueError, match="a run with cells of its own, which would be lost"):
        Merged.of([str(first), str(second)], out)


def test_another_variant_of_the_same_name_needs_a_label(runs, first, tmp_path):
    other = runs("other", [BASE, STRONG], budgets=[4])
    with pytest.raises(ValueError, match=r"variants\.noise\.params\.scale: 0\.2 in .*first, 0\.4 in .*other\n.*LABEL"):
        Merged.of([str(first), str(other)], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    run = Merged.of([str(first), f"new={other}"], tmp_path / "both", "new.noise").write()
    assert run.plan.labels == {"base": "base", "noise": "noise", "new.noise": "Noise! (new)"}
    assert run.plan.baseline == "new.noise"
    assert {cell.name for cell in run.plan.cells if cell.variant == "new.noise"} == {"new.noise__n4__s0"}
    assert "new.noise is noise of other" in " ".join(run.environment.notes)
    # Whichever has the label is renamed, wherever it stands.
    assert list(Merged.of([f"old={first}", str(other)], tmp_path / "x").plan.labels) == ["base", "old.noise", "noise"]


def test_another_sae_under_the_same_name_needs_a_label(runs, first, tmp_path):
    other = runs("sae", [BASE, WEAK], sae="output", budgets=[4])
    with pytest.raises(ValueError, match=r"suite\.saes\.one: .* in .*first, .* in .*sae"):
        Merged.of([str(first), str(other)], tmp_path / "both")
    run = Merged.of([str(first), f"b={other}"], tmp_path / "both").write()
    assert set(run.environment.saes) == {"one", "b.one"}
    saes = {cell.variant: cell.params["sae"] for cell in run.plan.cells if cell.variant != "base"}
    assert saes == {"noise": "one", "b.noise": "b.one"}
    kept = yaml.safe_load((run.path / "suite.yaml").read_text())
    assert {entry["name"]: entry.get("params", {}).get("sae") for entry in kept["variants"]} == {
        "base": None,
        "noise": "one",
        "b.noise": "b.one",
    }
    assert prepare(run.path / "suite.yaml", run.path).failures == {}
    assert read_run(run.path).complete


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": 6}, r"suite\.seed: 5 in .*first, 6 in "),
        ({"judge": {"kind": "toy_judge", "strictness": 2.0}}, r"suite\.judge\.strictness: .*\n.*\n.*rejudge RUN"),
        ({"model": "gemma2"}, r"suite\.base\.content: .* in .*first, .* in "),
        (
            {"benchmarks": [{"name": "toy_bench", "questions": "questions.jsonl", "pause": 0.001}]},
            r"benchmarks\.toy_bench\.pause: 0\.0 in .*first, 0\.001 in",
        ),
    ],
    ids=["seed", "judge", "base", "benchmark"],
)
def test_what_differs_in_more_than_variants_is_refused(runs, first, tmp_path, changes, complaint):
    other = runs(f"differs-{next(iter(changes))}", [BASE], **changes)
    with pytest.raises(ValueError, match=complaint):
        Merged.of([str(first), str(other)], tmp_path / "both")
    called = CliRunner().invoke(commands, ["compare", str(first), str(other), "--out", str(tmp_path / "both")])
    assert called.exit_code != 0 and not (tmp_path / "both").exists()


def test_questions_that_were_edited_are_refused_by_their_hash(runs, first, tmp_path):
    folder = runs.folder / "edited-suite"
    path = write_suite(folder, runs.tiny["llama"], name="edited", variants=[BASE], seeds=1)
    (folder / "questions.jsonl").write_text(json.dumps("w1 w31") + "\n")
    assert run_suite(prepare(path, runs.folder / "edited"), NoProgress()) == {}
    with pytest.raises(ValueError, match=r"benchmarks\.toy_bench\.questions: .* in .*first, .* in .*edited"):
        Merged.of([str(first), str(runs.folder / "edited")], tmp_path / "both")


def test_benchmarks_that_not_all_have_are_left_out_by_name(runs, first, tmp_path):
    two = [
        {"name": "toy_bench", "as": None, "questions": "questions.jsonl"},
        {"name": "toy_bench", "as": "more", "questions": "questions.jsonl"},
    ]
    merged = Merged.of([str(runs("two", [FLAT], benchmarks=two, report={})), str(first)], tmp_path / "both")
    assert "Left out, because not every run has it: more." in merged.notes
    run = merged.write()
    assert run.plan.benchmark_names == ("toy_bench",)
    assert list(load_suite(run.path / "suite.yaml", ["benchmarks.toy_bench.pause=1"]).benchmarks) == ["toy_bench"]
    assert "more_evenness" not in write_report(run.path).read_text()
    assert run.plan.baseline == "flat"


@pytest.mark.parametrize(
    ("given", "out", "complaint"),
    [
        (["first"], "both", "give two runs or more"),
        (["first", "first"], "both", "is given twice"),
        (["first", "second"], "second", "is one of the runs"),
        (["first", "nowhere"], "both", "is not a run folder"),
        (["first", "a_b=second"], "both", "'a_b' cannot be a label"),
        (["first", "second"], "first-suite", "is there, and is no comparison of runs"),
    ],
)
def test_bad_input_is_refused(runs, first, second, tmp_path, given, out, complaint):
    places = [f"{label}{equals}{runs.folder / name}" for label, equals, name in (g.rpartition("=") for g in given)]
    where = runs.folder / out if out != "both" else tmp_path / out
    with pytest.raises(ValueError, match=complaint):
        Merged.of(places, where)


def test_a_baseline_that_no_run_has_and_a_damaged_run_are_refused(first, second, tmp_path):
    with pytest.raises(ValueError, match="no variant is called 'x'; the runs have: base, noise, flat"):
        Merged.of([str(first), str(second)], tmp_path / "both", "x")
    copy = Path(shutil.copytree(second, tmp_path / "damaged"))
    (copy / "cells" / "base__n0__s0" / "records" / "toy_bench.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="is not as it was written"):
        Merged.of([str(first), str(copy)], tmp_path / "both")


def test_unfinished_cells_stay_unfinished_and_ledgers_add_up(first, second, tmp_path):
    copies = [Path(shutil.copytree(path, tmp_path / path.name)) for path in (first, second)]
    (copies[1] / "cells" / "flat__n8__s1" / "cell.json").unlink()
    for copy in copies:
        ledger = Ledger(copy / "judging")
        call = ledger.send("judge", "there", most=2.0, cap=None)
        ledger.end(call, "answered", cost=1.5)
    out = tmp_path / "both"
    called = CliRunner().invoke(commands, ["compare", *map(str, copies), "--out", str(out)])
    assert called.exit_code == 1 and "flat__n8__s1: not run to its end" in called.output
    assert read_run(out).unfinished == ("flat__n8__s1",)
    assert read_accounts(out / "judging")["judge"].cost == 3.0
    # A comparison of a comparison with one of its runs pays nothing twice.
    Merged.of([str(out), str(copies[0])], tmp_path / "again").write()
    assert read_accounts(tmp_path / "again" / "judging")["judge"].cost == 3.0
