"""The examples of docs/python.md run as they stand, in their order."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from harness.responder import Completion
from harness.run_folder import RunFolder
from tests.unit.synthetic_run import write_run

ROOT = Path(__file__).parents[2]


def store_an_answer(run: Path, cell: str, benchmark: str, text: str) -> None:
    """Make the first record of a benchmark name an answer of the store, as the records of a real run do."""
    home = RunFolder(run).cell(cell)
    home.answers(benchmark).append({"a key": Completion(text, (1, 2), 3, 2, True)}, None)
    records = home.path / "records" / f"{benchmark}.jsonl"
    first, *others = records.read_text().splitlines()
    record = json.loads(first)
    del record["raw"]["answer"]
    record["raw"]["answer_key"] = "a key"
    records.write_text("\n".join([json.dumps(record), *others]) + "\n")


def test_the_examples_run_as_they_stand(tmp_path):
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    script = tmp_path / "examples.py"
    run = write_run(tmp_path / "run")
    store_an_answer(run, "dpo__n300__s0", "mt_bench", "an answer from the store")
    calls = [f"show({str(run)!r})", f"print([len(frame) for frame in frames({str(run)!r})])"]
    script.write_text("\n".join([*examples, *calls]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shapes = ("{0: (1, 13, 128), 1: (1, 13, 128)}", "torch.Size([6, 5])")
    lines = ("<Budget of 200 triples, seed 0>", "<ConditionalDifferenceMap: 6 x 5 of 8 triples, paper gate>")
    for shown in ("| finished:", *shapes, *lines, "<Bill of example: ", "[2]", "an answer from the store", "<Run "):
        assert shown in done.stdout, f"{shown} is not in {done.stdout}"
