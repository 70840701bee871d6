"""Whole runs of a toy suite on a tiny model: complete, resumed after every kind of interruption, failing, refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.experiment.run import prepare, run_suite
from harness.provenance import code_commit
from harness.run_folder import RunFolder
from reports.run import read_run
from tests.toys import NoProgress, cell_states, outcome, write_suite
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
CELLS = 8


@pytest.fixture(scope="module")
def suite_path(tmp_path_factory, tiny_folders) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), tiny_folders["llama"])


def run(suite_path: Path, out: Path, *overrides: str):
    progress = NoProgress()
    return run_suite(prepare(suite_path, out, overrides), progress), progress


@pytest.fixture(scope="module")
def uninterrupted(suite_path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    failures, _ = run(suite_path, out)
    assert failures == {}
    return out


@pytest.fixture
def copy(uninterrupted, tmp_path) -> Path:
    """The complete run, to be damaged."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "copy"))


def command(*arguments: str | Path) -> list:
    return [Path(sys.executable).parent / "dspa-bench", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_a_run_leaves_every_cell_with_its_artifact_bill_records_and_description(uninterrupted):
    states, run = cell_states(uninterrupted), RunFolder.open(uninterrupted)
    assert len(states) == len(run.plan.cells) == CELLS
    planned = {cell.name: cell for cell in run.plan.cells}
    for name, state in states.items():
        cell = run.cell(name)
        assert state.commit == code_commit()
        assert (state.status, state.error) == ("done", None)
        assert len(cell.records("toy_bench") or []) == 6
        described = json.loads((cell.artifact / "aligned.json").read_text())
        assert described["fingerprint"] == state.fingerprint
        bill = json.loads((cell.path / "compute.json").read_text())
        assert bill == described["bill"]
        assert bill["n_triples"] == planned[name].budget
        assert (described["budget"] or {}).get("hash") == state.triples_hash
    sums = {states[f"noise{v}__n8__s0"].triples_hash for v in ("", "@scale=0.1", "@scale=0.3")}
    assert len(sums) == 1
    assert states["base__n0__s0"].triples_hash is None
    assert read_run(uninterrupted).complete, "the report must expect the very cells that were planned"


def test_the_environment_is_described(uninterrupted):
    environment = json.loads((uninterrupted / "environment.json").read_text())
    assert {"created", "command", "suite_hash", "git", "python", "platform", "cpu", "cores", "memory_bytes", "gpu",
            "threads", "packages", "judge", "second_judge", "base", "saes", "triples", "compared",
            "notes", "seconds", "files", "checksum", "machines", "engine"} == set(environment)  # fmt: skip
    assert environment["judge"] == {"label": "toy-v1", "statement": "A toy judge made these numbers."}
    assert environment["triples"]["n"] == 12
    assert environment["packages"]["torch"]
    assert environment["seconds"] > 0


def test_running_a_complete_run_again_touches_no_cell(uninterrupted, suite_path):
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted / "cells").rglob("*")}
    environment = (uninterrupted / "environment.json").read_bytes()
    failures, progress = run(suite_path, uninterrupted)
    assert failures == {}
    assert progress.told == []
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / "cells").rglob("*")} == before
    assert (uninterrupted / "environment.json").read_bytes() == environment


def test_worker_processes_give_what_one_process_gives(uninterrupted, suite_path, tmp_path):
    failures, progress = run(suite_path, tmp_path / "two", "execution.workers=2")
    assert failures == {}
    assert outcome(tmp_path / "two") == outcome(uninterrupted)
    assert {told[0] for told in progress.told if told[1] == "over"} == set(cell_states(uninterrupted))


def test_a_cell_is_the_same_whatever_other_cells_there_are(uninterrupted, suite_path, tmp_path):
    overrides = ["budgets=[8]", "seeds=1", "variants.noise.sweep={scale: [0.3]}"]
    run(suite_path, tmp_path / "fewer", *overrides)
    fewer, all_of_them = outcome(tmp_path / "fewer"), outcome(uninterrupted)
    assert {name.split("/")[1] for name in fewer} == {"base__n0__s0", "noise__n8__s0", "noise@scale=0.3__n8__s0"}
    assert fewer == {name: all_of_them[name] for name in fewer}


def test_variants_draw_the_same_noise_under_one_seed_and_other_noise_under_another(suite_path, tmp_path):
    still = [{"name": name, "method": "toy_noise", "params": {"scale": 0}} for name in ("one", "other")]
    run(suite_path, tmp_path / "run", f"variants={json.dumps(still)}", "report.baseline=one", "budgets=[4]")

    def answers(name: str) -> list[str]:
        return [r.raw["answer_hash"] for r in RunFolder(tmp_path / "run").cell(name).records("toy_bench") or ()]

    assert answers("one__n4__s0") == answers("other__n4__s0"), "equal models, equal noise: equal answers"
    assert answers("one__n4__s0") != answers("one__n4__s1")


def test_a_run_may_grow_and_keeps_what_it_has(uninterrupted, suite_path, tmp_path):
    out = tmp_path / "growing"
    run(suite_path, out, "budgets=[4]", "seeds=1", "variants.noise.sweep={scale: [0.1]}")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")}
    failures, _ = run(suite_path, out)
    assert failures == {}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    grown, whole = outcome(out), outcome(uninterrupted)
    assert {name: value for name, value in grown.items() if "@scale=0.1__n4" not in name} == whole


@pytest.mark.parametrize(
    "lost",
    [
        ["cell.json"],
        ["cell.json", "records/toy_bench.jsonl"],
        ["cell.json", "records/toy_bench.jsonl", "artifact"],
        ["cell.json", "records/toy_bench.jsonl", "artifact", "compute.json"],
        ["records/toy_bench.jsonl"],
    ],
    ids=lambda lost: lost[-1],
)
def test_whatever_a_cell_lacks_is_made_again_and_nothing_else(copy, uninterrupted, suite_path, lost):
    cell = copy / "cells" / "noise__n8__s1"
    for name in lost:
        path = cell / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, progress = run(suite_path, copy)
    assert outcome(copy) == outcome(uninterrupted)
    assert {told[0] for told in progress.told} == {"noise__n8__s1"}
    stages = {told[1] for told in progress.told}
    assert ("fit" in stages) == ("artifact" in lost)


@pytest.mark.parametrize(
    ("moment", "workers"),
    [
        ("cells/*/compute.json", 1),
        ("cells/*/records/*.partial", 1),
        ("cells/noise*/cell.json", 1),
        ("cells/*/records/*.partial", 2),
    ],
    ids=["fit", "records", "cell", "two workers"],
)
def test_a_killed_run_goes_on_to_the_outcome_of_an_uninterrupted_one(
    uninterrupted, suite_path, tmp_path, moment, workers
):
    out = tmp_path / "killed"
    overrides = ["--set", "benchmarks.toy_bench.pause=0", "--set", f"execution.workers={workers}"]
    arguments = command("run", suite_path, "--out", out, *overrides)
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
    wait_until(lambda: any(out.glob(moment)), process)
    process.kill()
    process.wait()
    assert len(cell_states(out)) < CELLS
    again = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert outcome(out) == outcome(uninterrupted)
    assert (out / "report" / "report.md").is_file()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_fit_does_not_stop_the_others_and_is_tried_again(suite_path, tmp_path, workers):
    overrides = [f"execution.workers={workers}", "budgets=[4]", "seeds=1", "variants.noise.sweep={scale: [-1]}"]
    out = tmp_path / "run"
    failures, _ = run(suite_path, out, *overrides)
    error = "fit: RuntimeError: the toy method was asked to fail"
    assert failures == {"noise@scale=-1__n4__s0": [error]}
    states = cell_states(out)
    assert {name for name, state in states.items() if state.status == "done"} == {"base__n0__s0", "noise__n4__s0"}
    assert states["noise@scale=-1__n4__s0"].error == error
    assert "asked to fail" in (out / "cells" / "noise@scale=-1__n4__s0" / "traceback.txt").read_text()
    _, progress = run(suite_path, out, *overrides)
    assert {told[0] for told in progress.told} == {"noise@scale=-1__n4__s0"}


def test_a_worker_that_dies_fails_its_cell_alone(suite_path, tmp_path):
    overrides = ["execution.workers=2", "budgets=[4]", "seeds=1", "variants.noise.sweep={scale: [101, 102, 0.1]}"]
    failures, _ = run(suite_path, tmp_path / "run", *overrides)
    assert set(failures) == {"noise@scale=101__n4__s0", "noise@scale=102__n4__s0"}
    assert all("worker process died (signal SIGKILL; not enough memory?" in f[0] for f in failures.values())
    assert sum(state.status == "done" for state in cell_states(tmp_path / "run").values()) == 3


def test_a_benchmark_that_breaks_does_not_take_the_other_benchmarks_along(suite_path, tmp_path):
    benchmarks = "benchmarks=[{name: toy_crash}, {name: toy_bench, questions: questions.jsonl}]"
    out = tmp_path / "run"
    failures, _ = run(suite_path, out, benchmarks, "variants=[{name: base, method: toy_base}]", "seeds=1")
    assert failures == {"base__n0__s0": ["toy_crash: RuntimeError: the toy benchmark broke"]}
    cell = RunFolder(out).cell("base__n0__s0")
    assert len(cell.records("toy_bench") or []) == 6
    assert cell.records("toy_crash") is None


def test_failed_records_are_kept_with_their_reason_and_tried_again(suite_path, tmp_path, uninterrupted):
    switch = tmp_path / "judge_is_away"
    switch.touch()
    overrides = [f"benchmarks.0.fail_while={switch}", "variants=[{name: base, method: toy_base}]", "seeds=1"]
    out = tmp_path / "run"
    failures, _ = run(suite_path, out, *overrides)
    assert failures == {"base__n0__s0": ["toy_bench: 1 of 6 records failed, first: the judge was away"]}
    switch.unlink()
    failures, progress = run(suite_path, out, *overrides)
    assert failures == {}
    assert "fit" not in {told[1] for told in progress.told}
    record = "cells/base__n0__s0/records/toy_bench.jsonl"
    assert outcome(out)[record] == outcome(uninterrupted)[record]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=6", "suite.seed: 5 there, 6 here"),
        ("name=others", 'suite.name: "toys" there, "others" here'),
        ("variants.noise.params.scale=0.5", "variants.noise.params.scale: 0.2 there, 0.5 here"),
        ("variants.noise.sweep={scale: [0.1]}", "variants.noise@scale=0.3: there, not in this suite"),
        ("benchmarks.0.pause=1", "benchmarks.toy_bench.pause: 0.0 there, 1.0 here"),
        ("judge.strictness=2", "suite.judge.strictness: 1.0 there, 2.0 here"),
        ("budgets=[8]", "cells.noise__n4__s0: there, not in this suite"),
        ("seeds=1", "cells.base__n0__s1: there, not in this suite"),
    ],
)
def test_a_run_folder_of_another_suite_is_refused_and_the_difference_named(
    uninterrupted, suite_path, override, expected
):
    with pytest.raises(ValueError, match="belongs to another suite") as caught:
        prepare(suite_path, uninterrupted, [override])
    assert expected in str(caught.value)
    assert "give another --out" in str(caught.value)


def test_edited_data_is_another_suite_and_moved_data_is_not(copy, suite_path, tmp_path, tiny_folders):
    moved = Path(shutil.copytree(suite_path.parent, tmp_path / "moved")) / "suite.yaml"
    assert run(moved, copy)[0] == {}
    questions = moved.parent / "questions.jsonl"
    questions.write_text(questions.read_text().replace("w30", "w31"))
    with pytest.raises(ValueError, match=r"benchmarks\.toy_bench\.questions: "):
        prepare(moved, copy)
    questions.write_text((suite_path.parent / "questions.jsonl").read_text())
    triples = moved.parent / "triples.jsonl"
    triples.write_text(triples.read_text().replace('"w0"', '"w1"', 1))
    with pytest.raises(ValueError, match=r"suite\.triples: "):
        prepare(moved, copy)


def test_how_the_work_is_done_may_change_between_sittings(uninterrupted, suite_path):
    settings = ["execution.workers=7", "report.baseline=noise", "variants.base.label=B"]
    prepared = prepare(suite_path, uninterrupted, settings)
    assert prepared.suite.file.execution.workers == 7
    assert prepared.failures == {}, "work is left that was done"


def test_a_folder_that_is_no_run_is_never_written_to(suite_path, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and no run of dspa-bench"):
        prepare(suite_path, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        prepare(suite_path, tmp_path / "notes.txt")
