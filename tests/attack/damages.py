"""A finished run whose files are damaged in every way: each damage is noticed and named, and the command that is named
makes the file again."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.experiment.run import prepare, run_suite
from harness.judging.ledger import Ledger
from harness.judging.verdicts import Replies
from harness.run_folder import Environment, RunFolder
from harness.run_folder import marks as marks_module
from harness.run_folder.verify import LEDGER, outside_cells, verify
from tests.attack.table import Row
from tests.toys import NoProgress, outcome, write_suite

UNCHECKED = ("log.txt", ".lock", ".report.lock")
"""Files whose damage nobody minds: logs and locks."""
CAA = {"name": "caa", "method": "caa", "params": {"layer": 1}, "tune": {"scale": [0.5, 1.0]}}
SETTINGS = {
    "plugins": ["tests.toys", "tests.judged_toys"],
    "budgets": [8],
    "seeds": 1,
    "judge": {"kind": "toy_rule"},
    "second_judge": {"kind": "toy_rule", "rule": "length"},
    "benchmarks": [{"name": "toy_rated"}, {"name": "toy_bench", "questions": "questions.jsonl"}],
    "variants": [
        {"name": "base", "method": "toy_base"},
        CAA,
        {"name": "noise", "method": "toy_noise", "params": {"scale": 0.2}},
    ],
    "tune": {"trials": 2},
}


def run() -> list[Row]:
    """Every damage to every file, and the repair of two damages to every file."""
    from tests.conftest import make_model, make_tokenizer

    with tempfile.TemporaryDirectory(prefix="dspa-bench-damages-") as name:
        folder = Path(name)
        make_model("llama").save_pretrained(folder / "model")
        make_tokenizer().save_pretrained(folder / "model")
        suite = damage_suite(folder / "suite", folder / "model")
        whole = finished_run(suite, folder / "run")
        tried, missed = noticed(Path(shutil.copytree(whole, folder / "copy")))
        repairs, failed = repaired(suite, whole, folder / "repaired")
        for line in (*missed, *failed):
            print(f"wrong: {line}", file=sys.stderr)
        return [
            Row("damages to files of a finished run", tried, tried - len(missed), 0, len(missed)),
            Row("repairs by the command that is named", repairs, 0, repairs - len(failed), len(failed)),
        ]


def damage_suite(folder: Path, base: Path) -> Path:
    """A suite whose run has a file of every kind."""
    path = write_suite(folder, base, **SETTINGS)
    rows = [{"prompt": f"w{i} w20", "chosen": f"w{i}", "rejected": "w3 w4"} for i in range(12)]
    (folder / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def finished_run(suite: Path, out: Path) -> Path:
    """A complete run, with what a paid judge and a reward model would have left in it."""
    assert run_suite(prepare(suite, out), NoProgress()) == {}
    replies, ledger = Replies(out / "judging"), Ledger(out / "judging")
    for number in range(3):
        replies.keep(f"{number}", "judge", f"[[{number}]]")
        ledger.end(ledger.send("judge", "http://x", most=1.0, cap=None), "answered", cost=0.5)
    (out / "judging" / "reward-0").mkdir()
    (out / "judging" / "reward-0" / "reward.json").write_text("{}")
    (out / "judging" / "reward-0" / "model.safetensors").write_bytes(b"weights")
    (out / "left_out.json").write_text("{}")
    environment = Environment.read(out / "environment.json")
    environment.model_copy(update={"files": outside_cells(RunFolder(out))}).write(out / "environment.json")
    assert verify(RunFolder(out), thorough=True) == []
    return out


def damaged(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """(what was done, what is then in the file; None: it is gone)."""
    for place in sorted({0, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1}):
        flipped = bytearray(content)
        flipped[place] ^= 1
        yield f"byte {place} flipped", bytes(flipped)
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if digits:
        place = digits[len(digits) // 2]
        other = b"7" if content[place : place + 1] != b"7" else b"3"
        yield "a digit changed", content[:place] + other + content[place + 1 :]
    yield "truncated", content[: len(content) // 2]
    yield "last byte cut", content[:-1]
    yield "last line cut", content[: content[:-1].rfind(b"\n") + 1]
    yield "zeroed", bytes(len(content))
    yield "emptied", b""
    yield "deleted", None


def noticed(run: Path) -> tuple[int, list[str]]:
    """How many damages were done to the files of ``run``, which then are what they were, and those not noticed."""
    files = _files(run)
    kinds = {path.relative_to(run).as_posix().replace("cells/", "").partition("/")[2] or path.name for path in files}
    assert len(kinds) > 20, "there must be a file of every kind"
    missed, tried = [], 0
    for path in files:
        content, stat = path.read_bytes(), path.stat()
        name = path.relative_to(run).as_posix()
        for what, now in damaged(content):
            path.unlink() if now is None else path.write_bytes(now)
            if now is not None:  # not even its time gives it away
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            marks_module._hash_once.cache_clear()
            tried += 1
            found = [line for line in verify(RunFolder(run), thorough=False) if name in line]
            # A cell without cell.json is not over: it is made to its end again, and no report counts it as done.
            if not found and not (name.endswith("cell.json") and now is None):
                missed.append(f"{name}: {what}")
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return tried, missed


def repaired(suite: Path, whole: Path, copy: Path) -> tuple[int, list[str]]:
    """How many damages to a copy of ``whole`` were to be repaired by its own command, and where that went wrong."""
    wrong, tried, expected = [], 0, outcome(whole)
    for path in _files(whole):
        name = path.relative_to(whole).as_posix()
        for loss in (flip, Path.unlink):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            loss(copy / name)
            marks_module._hash_once.cache_clear()
            tried += 1
            try:
                left = run_suite(prepare(suite, copy), NoProgress())
            except ValueError as problem:
                left = {} if name == LEDGER and "--out NEW --reuse RUN" in str(problem) else {"": [str(problem)]}
                if not left:
                    continue  # what was spent cannot be made again, and the message says what to do
            if left or verify(RunFolder(copy), thorough=True) or outcome(copy) != expected:
                wrong.append(f"{name}, {loss.__name__}: {left or 'another outcome'}")
    return tried, wrong


def _files(run: Path) -> list[Path]:
    return [path for path in sorted(run.rglob("*")) if path.is_file() and path.name not in UNCHECKED]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
