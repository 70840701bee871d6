"""Several processes at one run folder: each cell is run by one of them, and what dead ones left is taken over."""

import shutil
import subprocess
import sys
from pathlib import Path
from socket import gethostname

import pytest

from harness.experiment import sharing
from harness.experiment.run import prepare, run_suite
from harness.run_folder import RunFolder
from tests.integration.test_run import command, environment
from tests.toys import NoProgress, cell_states, outcome, write_suite

CELLS = 8


@pytest.fixture(scope="module")
def suite_path(tmp_path_factory, tiny_folders) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), tiny_folders["llama"])


@pytest.fixture(scope="module")
def whole(suite_path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run_suite(prepare(suite_path, out), NoProgress()) == {}
    return out


@pytest.fixture
def begun(whole, tmp_path) -> Path:
    """The run as it is when two of its cells are not over."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("base__n0__s0", "noise__n8__s1"):
        shutil.rmtree(out / "cells" / name)
    return out


@pytest.fixture
def other(begun, monkeypatch):
    """Another process that works at the run: it has one of the cells."""
    monkeypatch.setattr(sharing, "WAIT_SECONDS", 0.01)
    other = RunFolder(begun).claims
    other.enter("--only")
    assert other.take("base__n0__s0")
    yield other
    other.leave()


def told_of(progress: NoProgress, cell: str) -> list[str]:
    return [told[1] for told in progress.told if told[0] == cell]


def test_runs_that_are_started_at_once_share_the_cells(whole, suite_path, tmp_path):
    out = tmp_path / "run"
    both = [
        subprocess.Popen(
            command("run", suite_path, "--out", out),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert outcome(out) == outcome(whole)
    fitted = [line for text, _ in said for line in text.splitlines() if line.endswith(": fit")]
    assert len(fitted) == len(set(fitted)) == CELLS
    assert [state.host for state in cell_states(out).values()] == [gethostname()] * CELLS
    assert not (out / "claims").exists()
    assert (out / "report" / "report.md").is_file()


def test_shards_run_their_own_cells_and_the_last_makes_the_report(whole, suite_path, tmp_path, call):
    out = tmp_path / "run"
    code, text, _ = call("run", suite_path, "--out", out, "--shard", "2/2", "--dry-run")
    assert (code, out.exists(), text.splitlines()[-1]) == (
        0,
        False,
        "8 cells, 4 of them for this process (--shard 2/2), of which 4 to do",
    )
    code, text, _ = call("run", suite_path, "--out", out, "--shard", "2/2")
    assert (code, text.splitlines()[-1]) == (0, "4 of 8 cells of the run are missing: nobody runs 4")
    assert set(cell_states(out)) == {cell.name for cell in RunFolder(out).plan.cells[1::2]}
    assert not (out / "report").exists()
    seconds = RunFolder(out).environment.seconds
    code, text, _ = call("run", suite_path, "--out", out, "--shard", "1/2")
    assert (code, text.splitlines()[-1]) == (0, "all 8 cells of the run are over")
    assert outcome(out) == outcome(whole)
    assert (out / "report" / "report.md").is_file()
    environment = RunFolder(out).environment
    assert environment.seconds > seconds > 0
    assert list(environment.machines) == [gethostname()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "noise__n4__s9"], "--only 'noise__n4__s9' is no cell of this suite; did you mean 'noise__n4__s"),
        (["--shard", "0/4"], "--shard '0/4' must be i/n with i from 1 to n, such as 1/8"),
        (["--shard", "5/4"], "--shard '5/4' must be"),
        (["--shard", "2"], "--shard '2' must be"),
        (["--shard", "1/2", "--only", "base__n0__s0"], "give one of them"),
    ],
)
def test_what_is_no_cell_and_no_shard_is_refused(suite_path, tmp_path, call, arguments, said):
    code, _, errors = call("run", suite_path, "--out", tmp_path / "run", *arguments)
    assert (code, said in errors) == (2, True), errors
    assert not (tmp_path / "run").exists()


def test_only_the_named_cells_are_run(whole, begun, suite_path, call):
    code, text, _ = call("run", suite_path, "--out", begun, "--only", "base__n0__s0", "--only", "noise__n4__s0")
    assert (code, text.splitlines()[-1]) == (0, "1 of 8 cells of the run are missing: nobody runs 1")
    assert "base__n0__s0" in cell_states(begun)
    assert not (begun / "cells" / "noise__n8__s1").exists()


def test_the_cells_of_another_process_are_waited_for_and_what_it_leaves_is_taken_over(whole, begun, suite_path, other):
    class Leaves(NoProgress):
        def stage(self, cell: str, stage: str, records: int) -> None:
            super().stage(cell, stage, records)
            if stage.startswith("run by"):
                assert set(cell_states(begun)) == set(cell_states(whole)) - {"base__n0__s0"}
                other.leave()

    progress = Leaves()
    assert run_suite(prepare(suite_path, begun), progress) == {}
    assert outcome(begun) == outcome(whole)
    runner, *stages = told_of(progress, "base__n0__s0")
    assert runner.startswith(f"run by {gethostname()}:")
    assert runner.endswith(" (--only)")
    assert ("fit" in stages, stages[-1]) == (True, "over")


def test_what_another_process_brought_to_its_end_meanwhile_is_not_run_again(whole, begun, suite_path, other):
    class Ends(NoProgress):
        def over(self, cell: str) -> None:
            super().over(cell)
            if cell == "noise__n8__s1":
                shutil.copytree(whole / "cells" / "base__n0__s0", begun / "cells" / "base__n0__s0")
                other.leave()

    progress = Ends()
    assert run_suite(prepare(suite_path, begun), progress) == {}
    assert outcome(begun) == outcome(whole)
    assert told_of(progress, "base__n0__s0") == ["over"]


def test_a_process_whose_cells_are_all_over_does_not_wait_and_leaves_those_at_work_alone(
    whole, begun, suite_path, other, call
):
    half = begun / "cells" / "base__n0__s0" / "records"
    half.mkdir(parents=True)
    (half / "toy_bench.jsonl.partial").write_text("{")
    code, text, _ = call("run", suite_path, "--out", begun, "--only", "noise__n8__s1")
    assert code == 0
    last = text.splitlines()[-1]
    assert last.startswith(f"1 of 8 cells of the run are missing: {gethostname()}:")
    assert last.endswith(" (--only) runs 1")
    assert (half / "toy_bench.jsonl.partial").exists()
    assert (begun / "claims").is_dir()


def test_cells_of_other_runs_are_copied_under_a_claim(whole, suite_path, tmp_path):
    out, overrides = tmp_path / "second", ["name=second"]
    assert run_suite(prepare(suite_path, out, overrides, shard="1/8"), NoProgress()) == {}
    at_work = RunFolder(out).claims
    at_work.enter("")
    (out / "cells" / ".noise__n4__s0.adopted").mkdir()  # a killed process's
    progress = NoProgress()
    assert run_suite(prepare(suite_path, out, overrides, [whole]), progress) == {}
    at_work.leave()
    assert progress.told == []
    assert sum(state.origin == "toys" for state in cell_states(out).values()) == CELLS - 1


def test_a_folder_that_is_being_opened_is_waited_for(whole, suite_path):
    holding = "import sys\nfrom harness.run_folder import RunFolder\nwith RunFolder(sys.argv[1]).lock():\n"
    holding += "    print(1, flush=True)\n    sys.stdin.read()\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", holding, whole], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    second = subprocess.Popen(
        command("run", suite_path, "--out", whole), env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert second.stderr is not None
    assert second.stderr.readline().startswith("waiting for another process that holds")
    holder.communicate()
    second.communicate()
    assert second.returncode == 0
