"""Whatever happens to a file of a finished run is noticed and named, and a rerun makes just that again."""

import json
import os
import shutil
from pathlib import Path

import pytest

from harness.experiment.run import prepare, run_suite
from harness.files import locked
from harness.judging.verdicts import Replies
from harness.run_folder import RunFolder
from harness.run_folder import marks as marks_module
from harness.run_folder.sweep import REPORT_LOCK
from harness.run_folder.verify import LEDGER, outside_cells, undisturbed, unverified, verify
from harness.seals import read_document, read_line, sealed_document, sealed_line
from reports.run import read_run
from tests.attack.damages import damage_suite, finished_run, flip, noticed
from tests.toys import NoProgress, outcome


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_folders) -> Path:
    return damage_suite(tmp_path_factory.mktemp("suite"), tiny_folders["llama"])


@pytest.fixture(scope="module")
def finished(suite, tmp_path_factory) -> Path:
    return finished_run(suite, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_every_damage_to_every_file_is_noticed_and_named(copy):
    tried, missed = noticed(copy)
    assert missed == []
    assert tried > 300
    assert verify(RunFolder(copy), thorough=True) == []


def test_of_a_large_file_whose_size_and_time_are_the_same_only_verify_reads_the_content(copy, monkeypatch):
    monkeypatch.setattr(marks_module, "LARGE", 1000)
    path = copy / "cells" / "noise__n8__s0" / "artifact" / "weights" / "model.safetensors"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (line,) = verify(RunFolder(copy), thorough=False)
    assert "model.safetensors was changed" in line, "its time is another"
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert verify(RunFolder(copy), thorough=False) == []
    (line,) = verify(RunFolder(copy), thorough=True)
    assert "model.safetensors was changed" in line


def test_a_copied_folder_has_other_times_and_the_same_content(copy):
    for path in copy.rglob("*"):
        os.utime(path)
    assert verify(RunFolder(copy), thorough=False) == []


DAMAGES = {
    "results": {
        "cells/base__n0__s0/records/toy_bench.jsonl": {"toy_bench"},
        "cells/caa__n8__s0/answers/toy_rated.jsonl": {"toy_rated"},
        "cells/noise__n8__s0/second/records/toy_rated.jsonl": {"toy_rated, second judge"},
        "environment.json": set(),
    },
    "fits": {
        "cells/base__n0__s0/compute.json": set(),
        "cells/caa__n8__s0/tuning/best.json": {"fit", "tuning, base", "toy_rated", "toy_bench"},
        "cells/noise__n8__s0/artifact/weights/model.safetensors": {"fit", "toy_rated", "toy_bench"},
        "plan.json": set(),
    },
    "descriptions": {
        "cells/base__n0__s0/cell.json": set(),
        "cells/caa__n8__s0/artifact/aligned.json": {"fit", "toy_rated", "toy_bench"},
        "cells/noise__n8__s0/diagnostics/toy_bench.json": {"toy_bench"},
        "identity.json": set(),
        "suite.yaml": set(),
    },
}


@pytest.mark.parametrize("loss", [flip, Path.unlink])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_rerun_makes_what_is_damaged_again_and_nothing_else(suite, finished, copy, call, kind, loss):
    for name in DAMAGES[kind]:
        loss(copy / name)
    code, _, errors = call("report", copy, "--out", copy.parent / "report")
    assert code == 2
    assert "dspa-bench run" in errors
    prepared = prepare(suite, copy)
    assert any("environment.json" in line for line in prepared.damage) == ("environment.json" in DAMAGES[kind])
    progress = NoProgress()
    assert run_suite(prepared, progress) == {}
    assert outcome(copy) == outcome(finished)
    assert verify(RunFolder(copy), thorough=True) == []
    read_run(copy)
    for name, stages in DAMAGES[kind].items():
        if name.startswith("cells/"):
            told = {stage for cell, stage, *_ in progress.told if cell == name.split("/")[1]} - {"over"}
            expected = stages | ({"toy_rated, second judge"} if "fit" in stages else set())
            assert {stage for stage in told if "trial" not in stage} == expected


LOST = {
    "records/toy_bench.jsonl": {"toy_bench"},
    "records/toy_rated.jsonl": {"toy_rated"},
    "second/records/toy_rated.jsonl": {"toy_rated, second judge"},
    "answers/toy_rated.jsonl": {"toy_rated"},
    "diagnostics/toy_bench.json": {"toy_bench"},
    "tuning/best.json": {"fit", "tuning, base", "toy_rated", "toy_bench", "toy_rated, second judge"},
    "compute.json": set(),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_of_a_cell_that_is_not_over_is_noticed_and_made_again(suite, finished, copy, name):
    cell = RunFolder(copy).cell("caa__n8__s0")
    (cell.path / "cell.json").unlink()  # as a kill before the end of the cell leaves it
    path = cell.path / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1] if path.suffix == ".jsonl" else [line.replace(b"0", b"1") for line in lines]))
    assert any(name in line for line in verify(RunFolder(copy), thorough=False))
    progress = NoProgress()
    assert run_suite(prepare(suite, copy), progress) == {}
    assert outcome(copy) == outcome(finished)
    assert {stage for _, stage, *_ in progress.told if "trial" not in stage} - {"over"} == LOST[name]
    assert verify(RunFolder(copy), thorough=True) == []


def test_records_that_nothing_vouches_for_are_made_again(suite, finished, copy):
    cell = RunFolder(copy).cell("base__n0__s0")
    for name in ("cell.json", "files.json"):
        (cell.path / name).unlink()
    records = cell.path / "records" / "toy_bench.jsonl"
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:-1]))
    progress = NoProgress()
    assert run_suite(prepare(suite, copy), progress) == {}
    assert outcome(copy) == outcome(finished)
    told = {stage for _, stage, *_ in progress.told}
    assert told == {"toy_rated", "toy_bench", "toy_rated, second judge", "over"}


def test_a_reader_copes_with_a_run_that_begins_to_work(copy):
    cell, reads = RunFolder(copy).cell("base__n0__s0"), []

    def read() -> int:
        reads.append(1)
        if len(reads) == 1:
            cell.reopen()
            raise ValueError("half of it is gone")
        return len(verify(RunFolder(copy), thorough=False))

    assert undisturbed(copy, read) == 0
    assert len(reads) == 2
    with pytest.raises(ValueError, match="nothing was changed"):
        undisturbed(copy, lambda: (_ for _ in ()).throw(ValueError("nothing was changed")))


def test_a_run_that_starts_leaves_the_report_alone_that_is_being_made(copy):
    making = copy / ".report-abcdefgh"
    making.mkdir()
    with locked(copy / REPORT_LOCK, "run folder", busy=None, mend=""), RunFolder(copy).lock():
        assert making.is_dir()
    with RunFolder(copy).lock():
        assert not making.exists()


def test_a_ledger_that_lost_lines_is_refused_with_what_to_do(suite, copy):
    path = copy / LEDGER
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"ledger\.jsonl has .* bytes and had .*--out NEW --reuse RUN"):
        prepare(suite, copy)


def test_what_lies_outside_the_cells_is_marked_wherever_the_run_lies(copy, monkeypatch):
    names = {"judging/ledger.jsonl", "judging/replies.jsonl", "left_out.json"}
    names |= {"judging/reward-0/reward.json", "judging/reward-0/model.safetensors"}
    monkeypatch.chdir(copy.rename(copy.with_name(".hidden")))
    assert set(outside_cells(RunFolder(Path("../.hidden")))) == names


def test_damaged_replies_and_reward_models_go(suite, copy):
    replies, reward = copy / "judging" / "replies.jsonl", copy / "judging" / "reward-0"
    flip(replies)
    flip(reward / "model.safetensors")
    prepared = prepare(suite, copy)
    assert sum("judging/" in line for line in prepared.damage) == 3, "a line, the file and the model"
    progress = NoProgress()
    assert run_suite(prepared, progress) == {}
    assert (progress.told, reward.exists(), len(replies.read_text().splitlines())) == ([], False, 2)
    assert verify(RunFolder(copy), thorough=True) == []


def test_journals_may_grow(copy):
    Replies(copy / "judging").keep("another", "judge", "text")
    assert verify(RunFolder(copy), thorough=True) == []


def test_verify_says_what_it_found(copy, call):
    code, out, _ = call("verify", copy)
    assert (code, out.splitlines()[0][:21]) == (0, "3 of 3 cells verified")
    code, out, _ = call("verify", copy, "--json")
    found = json.loads(out)
    assert (code, found["damaged"], found["cells"], found["over"], found["without_checksums"]) == (0, [], 3, 3, 0)
    flip(copy / "cells" / "base__n0__s0" / "records" / "toy_bench.jsonl")
    code, out, _ = call("verify", copy)
    assert code == 1
    assert "cells/base__n0__s0/records/toy_bench.jsonl was changed" in out
    assert f"dspa-bench run {copy / 'suite.yaml'} --out {copy}" in out
    code, out, _ = call("verify", copy, "--json")
    found = json.loads(out)
    assert (code, len(found["damaged"]), found["mend"].split()[:2]) == (1, 1, ["dspa-bench", "run"])
    code, _, errors = call("verify", copy / "cells")
    assert (code, "is not a run folder" in errors) == (2, True)


def test_a_run_of_a_version_without_checksums_is_read_and_said_not_to_be_verified(copy, call):
    for path in copy.rglob("*.jsonl"):
        lines = [read_line(line) for line in path.read_bytes().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in [*copy.glob("*.json"), *copy.rglob("cell.json")]:
        document = read_document(path.read_bytes())
        document.pop("files", None)
        path.write_text(json.dumps(document))
    assert len(unverified(RunFolder(copy))) == 3
    assert verify(RunFolder(copy), thorough=True) == []
    code, _, errors = call("report", copy, "--out", copy.parent / "report")
    assert code == 0
    assert "note: 3 of 3 cells are of a version that kept no checksums: not verified" in errors
    code, out, _ = call("verify", copy)
    assert (code, "3 cells are of a version that kept no checksums" in out) == (0, True)


def test_checksums_are_of_every_byte():
    rows = {"a": 1, "b": ["\u2028", None]}
    for text, read in ((sealed_document(rows).encode(), read_document), (sealed_line(rows).rstrip(b"\n"), read_line)):
        assert read(text) == rows
        for place in range(len(text)):
            for bit in range(8):
                changed = bytearray(text)
                changed[place] ^= 1 << bit
                try:
                    found = read(bytes(changed))
                except ValueError:
                    continue
                assert found.keys() - rows.keys() or not isinstance(found, dict), (place, bit, bytes(changed))
    assert read_line(sealed_line({}).strip()) == {}
