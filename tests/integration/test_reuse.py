"""Cells that another run has made in the same way are copied, and no others."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.run import commands
from harness.experiment.run import prepare, run_suite
from harness.run_folder import RunFolder
from reports.run import read_run
from tests.toys import NoProgress, cell_states, outcome, write_suite


@pytest.fixture(scope="module")
def suite_path(tmp_path_factory, tiny_folders) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), tiny_folders["llama"])


@pytest.fixture(scope="module")
def donor(suite_path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "donor"
    assert run_suite(prepare(suite_path, out, ["name=donor", "budgets=[8]"]), NoProgress()) == {}
    return out


def run(suite_path: Path, out: Path, donors: list[Path], *overrides: str) -> set[str]:
    """The cells that were worked on."""
    progress = NoProgress()
    assert run_suite(prepare(suite_path, out, overrides, donors), progress) == {}
    return {told[0] for told in progress.told if told[1] == "over"}


def test_equal_cells_are_copied_and_the_outcome_is_that_of_a_run_without(suite_path, donor, tmp_path):
    assert run(suite_path, tmp_path / "with", [donor]) == {"noise__n4__s0", "noise__n4__s1"}
    run(suite_path, tmp_path / "without", [])
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")
    assert {s.origin for n, s in cell_states(tmp_path / "with").items() if "n4" not in n} == {"donor"}
    assert read_run(tmp_path / "with").origins == {"donor": 6}
    # A copy of a copy still names the run that did the work.
    assert run(suite_path, tmp_path / "again", [tmp_path / "with"], "name=third") == set()
    assert {s.origin for s in cell_states(tmp_path / "again").values()} == {"donor", "toys"}


def test_a_variant_with_other_settings_is_made_here(suite_path, donor, tmp_path):
    made = run(suite_path, tmp_path / "run", [donor], "budgets=[8]", "variants.noise.params.scale=0.25")
    assert made == {"noise__n8__s0", "noise__n8__s1"}, "the sweep's points set the scale themselves"


def test_a_run_that_measured_or_started_otherwise_is_refused(suite_path, donor, tmp_path):
    two = json.dumps([{"name": "toy_bench", "questions": "questions.jsonl", "pause": 0.001}])
    with pytest.raises(
        ValueError, match=r"none of its cells .*\n  benchmarks\.toy_bench\.pause: 0\.0 there, 0\.001 here"
    ):
        prepare(suite_path, tmp_path / "run", [f"benchmarks={two}"], [donor])
    with pytest.raises(ValueError, match=r"suite\.seed: 5 there, 6 here"):
        prepare(suite_path, tmp_path / "run", ["seed=6"], [donor])
    with pytest.raises(ValueError, match="is not a run folder"):
        prepare(suite_path, tmp_path / "run", [], [tmp_path])
    assert not (tmp_path / "run").exists()


def test_cells_of_a_run_that_lacks_a_benchmark_are_begun(suite_path, donor, tmp_path):
    """Their fits and records are the other run's, to the byte; what it lacks is made here."""
    entries = [{"name": "toy_bench", "questions": "questions.jsonl"}]
    two = json.dumps([*entries, entries[0] | {"as": "again"}])
    overrides = ["budgets=[8]", f"benchmarks={two}"]
    printed = CliRunner().invoke(
        commands,
        [
            str(suite_path),
            "--out",
            str(tmp_path / "run"),
            "--reuse",
            str(donor),
            "--set",
            overrides[0],
            "--set",
            overrides[1],
            "--dry-run",
        ],
    )
    assert "cells: 6, of which 6 to do, 6 of them to copy from runs that lack benchmarks" in printed.output
    assert run(suite_path, tmp_path / "with", [donor], *overrides) == set(cell_states(tmp_path / "with"))
    run(suite_path, tmp_path / "without", [], *overrides)
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")
    for name in cell_states(donor):
        records = "records/toy_bench.jsonl"
        for kept in ("compute.json", records):
            here, there = (folder / "cells" / name / kept for folder in (tmp_path / "with", donor))
            assert here.read_bytes() == there.read_bytes()
            assert kept != records or here.stat().st_mtime_ns == there.stat().st_mtime_ns
        assert "copied from the run donor" in (tmp_path / "with" / "cells" / name / "log.txt").read_text()
    assert run(suite_path, tmp_path / "with", [donor], *overrides) == set()


@pytest.mark.parametrize("lost", ["cell.json", "records/toy_bench.jsonl"])
def test_an_incomplete_cell_is_not_copied(suite_path, donor, tmp_path, lost):
    other = Path(shutil.copytree(donor, tmp_path / "donor"))
    (other / "cells" / "base__n0__s1" / lost).unlink()
    assert "base__n0__s1" in run(suite_path, tmp_path / "run", [other], "budgets=[8]")


def test_a_cell_that_was_begun_here_is_gone_on_with(suite_path, donor, tmp_path):
    run(suite_path, tmp_path / "run", [donor], "budgets=[8]")
    (tmp_path / "run" / "cells" / "base__n0__s0" / "cell.json").unlink()
    assert run(suite_path, tmp_path / "run", [donor], "budgets=[8]") == {"base__n0__s0"}
    assert cell_states(tmp_path / "run")["base__n0__s0"].origin is None


def test_what_a_killed_copy_leaves_is_swept(suite_path, donor, tmp_path):
    run(suite_path, tmp_path / "run", [donor], "budgets=[8]")
    left = tmp_path / "run" / "cells" / ".base__n0__s0.adopted"
    shutil.copytree(donor / "cells" / "base__n0__s0", left)
    run(suite_path, tmp_path / "run", [donor], "budgets=[8]")
    assert not left.exists()
    RunFolder.open(tmp_path / "run")


def test_the_dry_run_counts_what_would_be_copied(suite_path, donor, tmp_path):
    options = ["--out", str(tmp_path / "run"), "--reuse", str(donor), "--dry-run"]
    printed = CliRunner().invoke(commands, [str(suite_path), *options])
    assert printed.exit_code == 0, printed.output
    assert "cells: 8, of which 2 to do, 6 to copy from other runs" in printed.output
