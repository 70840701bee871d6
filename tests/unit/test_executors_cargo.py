"""What travels to nodes that do not see the run folder, and back: files by content, cells, journals of judges."""

import os
import sys
from pathlib import Path

import pytest

from harness.experiment.executors import check_executor
from harness.experiment.executors.cargo import CHUNK, Item, Mirror, cargo_of
from harness.experiment.executors.desk import Desk, Entry, admit, entries
from harness.experiment.suite import load_suite
from harness.judging.ledger import CapReached, Ledger, read_accounts
from harness.judging.verdicts import Journal, Replies, keep_elsewhere
from harness.run_folder.layout import RunFolder
from tests.toys import write_suite


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A node's cache."""
    monkeypatch.setenv("DSPA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ray"


class Driver:
    """Serves files, and counts what is read of them."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.asked = desk, []

    def read(self, path: str, offset: int) -> bytes:
        self.asked.append(path)
        return self.desk.read(path, offset)


def test_everything_that_a_suite_names_reaches_a_node_once_and_under_the_same_relative_paths(
    tmp_path, tiny_folders, home, monkeypatch
):
    saes = {"early": {"path": str(tiny_folders["input"])}, "late": {"path": str(tiny_folders["output"])}}
    variants = [{"name": "dspa", "method": "dspa", "params": {"input_sae": "early", "output_sae": "late"}}]
    changes = {"saes": saes, "variants": variants, "report": None, "plugins": ["tests.toys", "beside_the_suite"]}
    source = write_suite(tmp_path / "suite", tiny_folders["gemma2"], **changes)
    (source.parent / "beside_the_suite.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(source.parent)])
    run = RunFolder(tmp_path / "there" / "run")
    (run.judging / "reward-1").mkdir(parents=True)
    (run.judging / "reward-1" / "model.safetensors").write_bytes(b"weights")
    (run.judging / "ledger.jsonl").write_text("")
    suite = load_suite(source)
    (run.path / "suite.yaml").write_text(suite.to_yaml(run.path))
    cargo = cargo_of(suite, run)
    named = {Path(item.path) for item in cargo}
    wanted = [run.path / "suite.yaml", source.parent / "triples.jsonl", source.parent / "questions.jsonl"]
    wanted += [run.judging / "reward-1" / "model.safetensors", source.parent / "beside_the_suite.py"]
    folders = [tiny_folders[name] for name in ("gemma2", "input", "output")]
    assert named == {*wanted, *(file for folder in folders for file in folder.iterdir())}

    driver = Driver(Desk(run.path))
    first, second = Mirror(), Mirror()
    first.bring(cargo, driver.read)
    assert sorted(set(driver.asked)) == sorted(driver.asked), "each once"
    before = len(driver.asked)
    second.bring(cargo, driver.read)
    assert len(driver.asked) == before, "what is on the node is not asked for again"
    there = load_suite(first.of(run.path) / "suite.yaml")
    assert there.file.triples.path == first.of(source.parent / "triples.jsonl")
    assert Path(there.file.base.path or "").is_dir() and there.file.base.path == str(first.of(folders[0]))
    assert there.file.triples.path.read_bytes() == (source.parent / "triples.jsonl").read_bytes()
    os.close(first._owner)  # as the system does for a process that ends
    assert Mirror().root.is_dir() and second.root.is_dir()
    assert not first.root.exists()


def test_a_file_that_changed_on_the_way_is_refused(tmp_path, home):
    file = tmp_path / "triples.jsonl"
    file.write_text("other")
    item = Item(str(file), "0" * 64, 5)
    with pytest.raises(ValueError, match="was changed on the driver's machine since the run began"):
        Mirror().bring([item], Desk(tmp_path).read)
    assert not (home / "contents" / item.sha256).exists()


def test_a_cell_is_handed_in_whole_or_not_at_all(tmp_path):
    run, desk = RunFolder(tmp_path), Desk(tmp_path)
    before = run.cell("a__n4__s0").path
    (before / "answers").mkdir(parents=True)
    (before / "answers" / "old.jsonl").write_text("old")
    assert [entry.name for entry in desk.begin("a__n4__s0", 0)] == ["answers/old.jsonl"]
    desk.write("a__n4__s0", 0, Entry("cell.json", 10, 7), 0, b"half")
    assert desk.begin("a__n4__s0", 1) == entries(before), "the first attempt died"
    assert not (tmp_path / "cells" / ".a__n4__s0.0.adopted").exists()
    content = os.urandom(CHUNK + 3)
    weights = Entry("artifact/model.safetensors", len(content), 1_700_000_000_123_456_789)
    for offset in (0, CHUNK):
        desk.write("a__n4__s0", 1, weights, offset, content[offset : offset + CHUNK])
    desk.write("a__n4__s0", 1, Entry("log.txt", 0, 5), 0, b"")
    assert [entry.name for entry in entries(before)] == ["answers/old.jsonl"]
    admit(run, "a__n4__s0", 1)
    assert entries(before) == [weights, Entry("log.txt", 0, 5)]
    assert (before / weights.name).read_bytes() == content
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["a__n4__s0"]


class Keeper:
    """A desk without Ray; ``late`` are rows that another process adds just before the next line."""

    def __init__(self, desk: Desk, owner: tuple[str, int]) -> None:
        self.desk, self.owner, self.late = desk, owner, []
        self.read = desk.read_lines

    def append(self, name: str, line: bytes, at: int | None) -> bool:
        while self.late:
            self.late.pop()()
        return self.desk.append(name, line, at)

    def take(self, key: str) -> bool:
        return self.desk.take(key, self.owner)

    def release(self, key: str | None) -> None:
        self.desk.release(key, self.owner)


def test_judges_on_other_machines_share_replies_questions_and_one_cap(tmp_path):
    desk = Desk(tmp_path / "run")
    keepers = []
    for number in (1, 2):
        keepers.append(Keeper(desk, (f"cell{number}", 0)))
        keep_elsewhere(tmp_path / f"node{number}", keepers[-1])
    one, other = (Ledger(tmp_path / f"node{number}") for number in (1, 2))
    call = one.send("judge", "http://here", most=0.6, cap=1.0)
    keepers[1].late.append(lambda: one.end(call, "answered", cost=0.5))
    other.send("judge", "http://here", most=0.4, cap=1.0)
    with pytest.raises(CapReached, match=r"cap of 1 reached: 0\.5 is spent, 0\.4 may be charged"):
        one.send("judge", "http://here", most=0.2, cap=1.0)
    assert read_accounts(tmp_path / "run" / "judging")["judge"].calls == 2
    mine, others = (Replies(tmp_path / f"node{number}") for number in (1, 2))
    with mine.claims() as claims, others.claims() as refused:
        assert claims.take("a" * 64) and claims.take("a" * 64)
        assert not refused.take("a" * 64)
        mine.keep("a" * 64, "judge", "[[4]]")
        claims.release("a" * 64)
        assert refused.take("a" * 64)
        others.refresh()
        assert others.get("a" * 64) == "[[4]]"
    assert not list(tmp_path.glob("node*")), "nothing is written on the nodes"
    with Replies(tmp_path / "run" / "judging").claims():
        assert Journal(tmp_path / "run" / "judging" / "replies.jsonl").news()[0]["text"] == "[[4]]"
    with others.claims() as claims:
        assert claims.take("b" * 64)
    with mine.claims() as claims:
        assert claims.take("b" * 64), "what a batch held is free when it is over"


def test_ray_that_is_not_installed_is_named_with_the_extra_that_brings_it(tmp_path, tiny_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    suite = load_suite(write_suite(tmp_path, tiny_folders["llama"]), ["execution.executor=ray"])
    with pytest.raises(ValueError, match=r"executor: ray needs the package ray.*pip install 'dspa-bench\[ray\]'"):
        check_executor(suite)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["execution.executor=dask"], "execution.executor"),
        (["execution.per_cell.cpus=1.5"], "cpus is 1.5; Ray gives shares of one only"),
        (["execution.per_cell.tpus=1"], "unknown key 'tpus'; known: cpus, gpus"),
        (
            ["execution.executor=ray", "execution.device=cuda"],
            "a cell gets no GPU of its node; add per_cell: {gpus: 1}",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_where_they_stand(changes, said, tmp_path, tiny_folders):
    with pytest.raises(ValueError, match=r"suite\.yaml|--set") as refused:
        load_suite(write_suite(tmp_path, tiny_folders["llama"]), changes)
    assert said in str(refused.value)
