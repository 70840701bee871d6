"""The run folder: nothing half-written is ever taken for a result, and nothing finished is ever lost."""

import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.benchmark import Metric, Record
from harness.compute.bill import Bill
from harness.files import check_can_make, write_json
from harness.run_folder import CellFolder, CellState, Plan, PlannedBenchmark, PlannedCell, PlannedVariant, RunFolder

METRICS = tuple(Metric(name=name, title=name, unit="%") for name in ("m", "other"))
PLAN = Plan(
    name="run",
    baseline="a",
    budgets=(1,),
    seeds=1,
    variants=(PlannedVariant(name="a", label="A", method="toy", uses_triples=True),),
    benchmarks=(PlannedBenchmark(name="bench", metrics=METRICS, files="bench"),),
    cells=(
        PlannedCell(
            name="a__n1__s0", variant="a", label="A", method="toy", budget=1, seed=0, uses_triples=True, params={}
        ),
    ),
)
ENVIRONMENT = {
    "created": "2026-11-21T02:00:00+00:00",
    "command": "dspa-bench run suite.yaml",
    "suite_hash": "9f2c77aa01",
    "git": {"commit": "0123", "dirty": True},
    "python": "3.11.9",
    "platform": "Linux",
    "cpu": "A processor",
    "cores": 2,
    "memory_bytes": 2**32,
    "gpu": None,
    "threads": 1,
    "packages": {"torch": "2.13.0"},
    "judge": {"label": "toy-v1", "statement": "A toy."},
    "second_judge": {"label": "toy-v2", "statement": "Another.", "benchmarks": ["bench"]},
    "notes": ["A note."],
    "base": {"path": "../model", "id": None, "revision": None, "dtype": "float32", "chat": "auto", "hash": "aa"},
    "saes": {"early": {"path": "../sae", "release": None, "id": None, "norm_filter": None, "hash": "bb"}},
    "triples": {"path": "../triples.jsonl", "n": 300, "hash": "cc"},
    "seconds": 213.4,
}
BILL = {
    "method": "toy",
    "n_triples": 1,
    "executed_flops": 10,
    "formula_flops": 12,
    "paper_flops": None,
    "predicted": {"train": 10},
    "flops_limit": None,
    "epochs": 1.0,
    "seconds": 1.5,
    "metering_seconds": 0.1,
    "start_bytes": 1,
    "peak_bytes": 2,
    "peak_source": "VmHWM",
    "cuda_peak_bytes": None,
    "tokens": 3,
    "optimiser_steps": 1,
    "train_params": 4,
    "total_params": 5,
    "stages": [],
    "operators": [],
    "declared": None,
}
GOOD = [Record(str(i), str(i), "m", float(i), raw={"answer": "one\u2028two"}) for i in range(3)]
BAD = [GOOD[0], Record("1", "1", "m", None, "no judge")]
DONE = CellState(status="done", error=None)


@pytest.fixture
def cell(tmp_path) -> CellFolder:
    return RunFolder(tmp_path / "run").cell("a__n1__s0")


def write(cell: CellFolder, records) -> None:
    for _ in cell.write_records("bench", METRICS, records):
        pass


def test_records_appear_under_their_name_only_when_the_benchmark_is_over(cell):
    stream = cell.write_records("bench", METRICS, iter(GOOD))
    next(stream)
    next(stream)
    partial = cell.path / "records" / "bench.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 2, "each record must be in the file before the next is made"
    assert cell.records("bench") is None
    for _ in stream:
        pass
    assert not partial.exists()
    assert cell.records("bench") == tuple(GOOD)


def test_a_record_is_one_line_for_every_reader_whatever_its_text(cell):
    write(cell, GOOD)
    assert len((cell.path / "records" / "bench.jsonl").read_text().splitlines()) == 3


def test_a_benchmark_that_breaks_leaves_nothing_and_an_earlier_result_stays(cell):
    def breaking():
        yield GOOD[0]
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError):
        write(cell, breaking())
    assert list((cell.path / "records").iterdir()) == []
    write(cell, BAD)
    with pytest.raises(RuntimeError):
        write(cell, breaking())
    assert cell.records("bench") == tuple(BAD)


def test_two_records_of_one_metric_and_item_are_refused_and_nan_too(cell):
    with pytest.raises(ValueError, match="two records for item '0' of m"):
        write(cell, [GOOD[0], GOOD[0]])
    write(cell, [GOOD[0], Record("0", "0", "other", 1.0)])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(cell, [Record("0", "0", "m", float("nan"))])


def test_a_cell_has_nothing_left_to_do_only_when_it_is_over_and_every_record_has_a_value(cell):
    assert cell.failures(["bench"]) == ["not run to its end"]
    cell.finish(DONE)
    assert cell.failures(["bench"]) == ["bench: not run"]
    write(cell, BAD)
    assert cell.failures(["bench"]) == ["bench: 1 of 2 records failed, first: no judge"]
    assert not cell.settled("bench")
    write(cell, GOOD)
    assert cell.failures(["bench"]) == []
    assert cell.settled("bench")
    cell.finish(CellState(status="failed", error="fit: broke"), traceback="Traceback")
    assert cell.failures(["bench"]) == ["fit: broke"]
    assert (cell.path / "traceback.txt").read_text() == "Traceback"
    cell.finish(DONE)
    assert not (cell.path / "traceback.txt").exists()


def test_a_second_judge_may_leave_out_a_metric_that_no_judge_makes_and_nothing_else(cell):
    counted = [replace(record, metric="other") for record in GOOD]
    write(cell, [*GOOD, *counted])
    assert not cell.judged_alike("bench"), "nothing was judged again"
    write(cell.second, GOOD)
    assert cell.judged_alike("bench")
    write(cell.second, GOOD[:2])
    assert not cell.judged_alike("bench")
    write(cell.second, [*GOOD, *counted[:1]])
    assert not cell.judged_alike("bench")
    write(cell.second, [*GOOD[:2], replace(GOOD[2], raw={"answer": "another"})])
    assert not cell.judged_alike("bench")


def test_opening_a_run_removes_what_killed_processes_left_half_written(tmp_path):
    run = RunFolder(tmp_path / "run")
    cell = run.cell("a__n1__s0")
    write(cell, GOOD)
    cell.finish(DONE)
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    (cell.path / "records" / "other.jsonl.partial").write_text("{")
    (cell.path / "artifact.partial").mkdir()
    (cell.path / "artifact.partial" / "aligned.json").write_text("{")
    (cell.path / ".cell.json.x1_2abcd").write_text("{")
    (cell.path / "mt_bench").mkdir()
    (cell.path / "mt_bench" / ".answers.jsonl.abcdefgh").write_text("{")
    (run.path / ".suite.yaml.abcdefgh").write_text("{")
    (run.path / ".report-abcdefgh" / "report").mkdir(parents=True)
    with run.lock():
        left = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert left == kept | {run.path / ".lock": b"", run.path / ".report.lock": b""}
    assert not (cell.path / "artifact.partial").exists()
    assert not (run.path / ".report-abcdefgh").exists()


def test_checkpoints_stay_until_the_artifact_is_there(tmp_path):
    run = RunFolder(tmp_path / "run")
    cell = run.cell("a__n1__s0")
    (cell.fitting / "training-1").mkdir(parents=True)
    with run.lock():
        assert cell.fitting.is_dir()
    cell.artifact.mkdir()
    with run.lock():
        assert not cell.fitting.exists()


def test_opening_a_run_removes_nothing_that_is_not_its_own(tmp_path):
    run = RunFolder(tmp_path / "run")
    cell = run.cell("a__n1__s0")
    write(cell, GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".cell.json.abcdefgh").write_text("mine")
    (cell.path / "link").symlink_to(elsewhere)
    (cell.path / "artifact.partial").symlink_to(elsewhere)
    (run.path / ".report-abcdefgh").symlink_to(elsewhere)
    for name in (
        ".git/HEAD",
        ".git/.cell.json.abcdefgh",
        ".notes.markdown",
        "notes.partial",
        "my.partial/notes.txt",
        "cells/.old/records/a.jsonl.partial",
        "cells/a__n1__s0/.idea/.cell.json.abcdefgh",
        "cells/a__n1__s0/download.partial",
    ):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("mine")
    before = set(tmp_path.rglob("*"))
    with run.lock():
        assert set(tmp_path.rglob("*")) == before | {run.path / ".lock"}


@pytest.mark.parametrize("text", ["{", "[1]", '{"cell": "a"}', "\xff", '{"status": "failed", "error": null}'])
def test_a_broken_cell_json_is_refused_by_its_name_and_leaves_the_cell_to_do(cell, text):
    cell.path.mkdir(parents=True)
    (cell.path / "cell.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a__n1__s0/cell\.json"):
        _ = cell.state
    (reason,) = cell.failures(["bench"])
    assert "a__n1__s0/cell.json" in reason


def test_broken_records_are_refused_by_their_file(cell):
    write(cell, GOOD)
    path = cell.path / "records" / "bench.jsonl"
    path.write_text(path.read_text() + "{")
    with pytest.raises(ValueError, match=r"records/bench\.jsonl:4: not a record: .*; rerun the suite"):
        cell.records("bench")
    assert not cell.settled("bench")


def test_an_item_recorded_twice_is_refused_by_its_line(cell):
    write(cell, GOOD)
    path = cell.path / "records" / "bench.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ValueError, match=r"bench\.jsonl:4: item '1' of m is already on line 2"):
        cell.records("bench")


def test_a_metric_that_the_benchmark_did_not_declare_is_refused_and_leaves_nothing(cell):
    with pytest.raises(ValueError, match=r"benchmark 'bench' made a record of metric 'n', which .*declares: m, other"):
        write(cell, [GOOD[0], Record("0", "0", "n", 1.0)])
    assert cell.records("bench") is None
    assert list((cell.path / "records").iterdir()) == []


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run that is over."""
    run = RunFolder(tmp_path / "run")
    PLAN.write(run.path / "plan.json")
    write_json(run.path / "environment.json", ENVIRONMENT)
    (run.path / "suite.yaml").write_text("name: run\n")
    cell = run.cell("a__n1__s0")
    cell.save_bill(Bill.model_validate(BILL))
    write(cell, GOOD)
    cell.finish(CellState(status="done", error=None, triples_hash="cc", fingerprint="ff", diagnostics={"bench.x": 0.1}))
    return run


def test_what_was_written_is_read_back(run):
    read = RunFolder.open(run.path)
    assert read.plan == PLAN
    assert json.loads((run.path / "plan.json").read_text())["schema_version"] == 1
    defaults = {"files": None, "compared": [], "machines": {}, "engine": None}
    assert read.environment.model_dump(mode="json") == ENVIRONMENT | defaults
    cell = read.cell("a__n1__s0")
    assert cell.state is not None
    assert cell.state.model_copy(update={"files": None}) == CellState(
        status="done", error=None, triples_hash="cc", fingerprint="ff", diagnostics={"bench.x": 0.1}
    )
    assert set(cell.state.files or ()) == {"compute.json", "files.json", "records/bench.jsonl"}
    assert cell.bill is not None
    assert cell.bill.model_dump(mode="json") == BILL
    assert cell.records("bench") == tuple(GOOD)
    assert cell.records("other") is None


@pytest.mark.parametrize("lacking", ["suite.yaml", "environment.json", "cells"])
def test_a_folder_that_is_not_a_run_is_refused_with_what_it_lacks(run, lacking, tmp_path):
    (run.path / lacking).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"is not a run folder: it has no {lacking}; give the --out folder"):
        RunFolder.open(run.path)


def test_a_run_of_an_older_version_is_refused_with_the_command_that_renews_it(run):
    (run.path / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"older version, which made no plan\.json.*dspa-bench run SUITE --out NEW"):
        RunFolder.open(run.path)


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("plan.json", "schema_version", 2, r"plan\.json: schema_version: .*another version"),
        ("plan.json", "baseline", None, r"plan\.json: missing baseline; did another version write it"),
        ("environment.json", "judge", None, r"environment\.json: missing judge"),
        ("environment.json", "cores", "two", r"environment\.json: cores: .*integer"),
        ("environment.json", "colour", "red", r"environment\.json: unknown key colour"),
    ],
)
def test_a_file_of_another_version_is_refused_with_the_key(run, name, key, value, expected):
    content = json.loads((run.path / name).read_text())
    content.pop("checksum", None)
    content[key] = value
    if value is None:
        del content[key]
    write_json(run.path / name, content)
    with pytest.raises(ValueError, match=expected):
        RunFolder.open(run.path)


@pytest.mark.parametrize("name", ["plan.json", "environment.json"])
def test_a_file_that_is_not_text_or_not_json_is_named(run, name):
    (run.path / name).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=f"{name}: not UTF-8"):
        RunFolder.open(run.path)
    (run.path / name).write_text("{")
    with pytest.raises(ValueError, match=f"{name}:1: not valid JSON"):
        RunFolder.open(run.path)


def test_a_cell_that_is_not_planned_is_refused_and_hidden_folders_are_not_looked_at(run):
    (run.path / "cells" / ".old").mkdir()
    RunFolder.open(run.path)
    (run.path / "cells" / "b__n1__s0").mkdir()
    with pytest.raises(ValueError, match=r"cells/b__n1__s0: plan\.json has no such cell"):
        RunFolder.open(run.path)


def test_a_cell_that_is_done_must_have_its_bill(run):
    cell = run.cell("a__n1__s0")
    write_json(cell.path / "compute.json", {key: value for key, value in BILL.items() if key != "tokens"})
    with pytest.raises(ValueError, match=r"compute\.json: missing tokens"):
        _ = cell.bill
    (cell.path / "compute.json").unlink()
    with pytest.raises(ValueError, match=r"compute\.json is missing"):
        _ = cell.bill
    cell.finish(CellState(status="failed", error="fit: broke"))
    assert cell.bill is None


def test_reading_a_run_needs_neither_torch_nor_pandas():
    code = (
        "import sys, harness.run_folder, harness.compute; "
        "assert not {'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    check_can_make(tmp_path / "new" / "newer")
    with pytest.raises(ValueError, match=r"cannot be made: .*file' is not a folder"):
        check_can_make(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="cannot write to the run folder"), RunFolder(tmp_path / "file" / "run").lock():
        pass
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match="no permission to write"):
        check_can_make(tmp_path / "new" / "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    run = RunFolder(tmp_path)
    with run.lock():
        process = multiprocessing.get_context("fork").Process(target=_expect_refusal, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == 0
    with run.lock():
        pass


def _expect_refusal(path):
    with pytest.raises(ValueError, match="another process is writing"), RunFolder(path).lock():
        pass


def test_json_is_replaced_as_a_whole(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
