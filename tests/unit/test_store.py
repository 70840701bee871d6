"""The run folder: nothing half-written is ever taken for a result, and nothing finished is ever lost."""

import json
import multiprocessing

import pytest

from harness.benchmark import Record
from harness.experiment.store import CellFolder, RunFolder, write_json

GOOD = [Record(str(i), str(i), "m", float(i), raw={"answer": "one\u2028two"}) for i in range(3)]
BAD = [GOOD[0], Record("1", "1", "m", None, "no judge")]
DONE = {"status": "done", "error": None}


@pytest.fixture
def cell(tmp_path) -> CellFolder:
    return RunFolder(tmp_path / "run").cell("a__n1__s0")


def write(cell: CellFolder, records) -> None:
    for _ in cell.write_records("bench", records):
        pass


def test_records_appear_under_their_name_only_when_the_benchmark_is_over(cell):
    stream = cell.write_records("bench", iter(GOOD))
    next(stream)
    next(stream)
    partial = cell.path / "records" / "bench.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 2, "each record must be in the file before the next is made"
    assert cell.records("bench") is None
    for _ in stream:
        pass
    assert not partial.exists()
    assert cell.records("bench") == [record.to_json() for record in GOOD]


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
    assert cell.records("bench") == [record.to_json() for record in BAD]


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
    cell.finish({"status": "failed", "error": "fit: broke"}, traceback="Traceback")
    assert cell.failures(["bench"]) == ["fit: broke"]
    assert (cell.path / "traceback.txt").read_text() == "Traceback"
    cell.finish(DONE)
    assert not (cell.path / "traceback.txt").exists()


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
    with run.lock():
        left = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert left == kept | {run.path / ".lock": b""}
    assert not (cell.path / "artifact.partial").exists()


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
