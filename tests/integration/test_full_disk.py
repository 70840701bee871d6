"""A full disk: one sentence, nothing half-written, and the same command goes on."""

import shutil
from pathlib import Path

from tests.toys import outcome, write_suite

SETTINGS = {"budgets": [4], "seeds": 1, "judge": None}
SAID = "error: the disk is full; free some space and give the same command again\n"


def unfinished(folder: Path) -> list[Path]:
    return [
        p
        for p in folder.rglob("*")
        if p.name.endswith(".partial") or (p.name.startswith(".") and not p.name.endswith(".lock"))
    ]


def test_a_run_and_a_report_without_room_say_so_and_go_on_when_there_is(tmp_path, tiny_folders, call, full_disk):
    suite = write_suite(tmp_path / "suite", tiny_folders["llama"], **SETTINGS)
    assert call("run", suite, "--out", tmp_path / "whole")[0] == 0
    for size in (0, 500, 3000, 20_000):
        with full_disk(size):
            code, _, errors = call("run", suite, "--out", tmp_path / "run")
        assert code == 1
        assert errors == SAID or "failed: " in errors
        assert "Traceback" not in errors
        assert unfinished(tmp_path / "run") == []
    assert call("run", suite, "--out", tmp_path / "run")[0] == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    report = tmp_path / "run" / "report"
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    with full_disk(2000):
        assert call("report", tmp_path / "run")[::2] == (1, SAID)
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before
    assert unfinished(tmp_path / "run") == []
    shutil.rmtree(report)
    assert call("report", tmp_path / "run")[0] == 0
