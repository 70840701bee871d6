"""The examples of docs/python.md run as they stand, in their order."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.unit.synthetic_run import write_run

ROOT = Path(__file__).parents[2]


def test_the_examples_run_as_they_stand(tmp_path):
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    script = tmp_path / "examples.py"
    run = write_run(tmp_path / "run")
    script.write_text("\n".join([*examples, f"show({str(run)!r})"]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shapes = ("{0: (1, 13, 128), 1: (1, 13, 128)}", "torch.Size([6, 5])")
    for shown in ("| finished:", *shapes, "[2]", "dpo__n300__s0 mt_bench"):
        assert shown in done.stdout, f"{shown} is not in {done.stdout}"
