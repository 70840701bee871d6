"""The run folder: nothing half-written is ever taken for a result, and nothing finished is ever lost."""

import json
import multiprocessing

import pytest

from harness.benchmark import Record
from harness.experiment.store import CellFolder, RunFolder, check_can_make, write_json

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
    (cell.path / "mt_bench").mkdir()
    (cell.path / "mt_bench" / ".answers.jsonl.abcdefgh").write_text("{")
    (run.path / ".suite.yaml.abcdefgh").write_text("{")
    (run.path / ".report-abcdefgh" / "report").mkdir(parents=True)
    with run.lock():
        left = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert left == kept | {run.path / ".lock": b""}
    assert not (cell.path / "artifact.partial").exists()
    assert not (run.path / ".report-abcdefgh").exists()


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


@pytest.mark.parametrize("text", ["{", "[1]", '{"cell": "a"}', "\xff"])
def test_a_broken_cell_json_is_refused_by_its_name(cell, text):
    cell.path.mkdir(parents=True)
    (cell.path / "cell.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a__n1__s0/cell\.json"):
        cell.failures(["bench"])


def test_broken_records_are_refused_by_their_file(cell):
    write(cell, GOOD)
    path = cell.path / "records" / "bench.jsonl"
    path.write_text(path.read_text() + "{")
    with pytest.raises(ValueError, match=r"records/bench\.jsonl: broken"):
        cell.settled("bench")


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
