"""docs/notebook.ipynb runs from any folder and prints what is stored in it.

After a change of its code: `python -m tests.integration.test_notebook` runs it and stores what it prints.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.plugins import HOME

NOTEBOOK = HOME / "docs" / "notebook.ipynb"
MARK = "---- the cell ends here"


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(notebook: dict[str, Any], folder: Path) -> list[str]:
    """What each code cell prints when all run in their order, in one process that is in an empty ``folder``."""
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    script = folder / "cells.py"
    script.write_text(f"\nprint({MARK!r})\n".join(sources), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(HOME), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [text.lstrip("\n") for text in done.stdout.split(MARK)]


def stored(cell: dict[str, Any]) -> str:
    return "".join(line for output in cell["outputs"] for line in output["text"])


def test_it_prints_what_it_shows_and_names_no_place_of_a_machine(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    shown = [stored(cell) for cell in code_cells(notebook)]
    assert sum(map(bool, shown)) >= 6
    assert not any(place in text for text in shown for place in ("/tmp", "/home", "/work", "/Users"))
    assert printed(notebook, tmp_path) == shown


if __name__ == "__main__":
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        for number, (one, text) in enumerate(zip(code_cells(found), printed(found, Path(place)), strict=True), 1):
            one["execution_count"] = number
            lines = text.splitlines(keepends=True)
            one["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    NOTEBOOK.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
