"""Takes away what killed processes were in the middle of writing, by the names that they write under.

Whatever else somebody keeps in a run folder stays: hidden folders and links are not even looked into.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from harness.files import locked

REPORT_LOCK = ".report.lock"
"""Held in the run folder by whoever makes a report there; nobody else takes the unfinished one away."""
_TEXT = re.compile(r"\..+\.(json|jsonl|yaml|txt|csv)\.[a-z0-9_]{8}")
"""What `write_text` writes to before it renames."""
_REPORT = re.compile(r"\.report-[a-z0-9_]{8}")
"""The folder beside report/ that a report is built in."""
_ADOPTED = re.compile(r"\..+\.adopted")
"""The folder beside a cell's that another run's cell is copied to."""


def is_ours(name: str) -> bool:
    """Whether a file in a run folder is a lock or something unfinished, which a run that was killed early left."""
    return name in (".lock", REPORT_LOCK) or _TEXT.fullmatch(name) is not None


def sweep_run(run: Path) -> None:
    """All that is unfinished in a run folder that nobody writes to; a report that is being made is left alone."""
    sweep_documents(run)
    for folder in _folders(run / "cells", _ADOPTED):
        shutil.rmtree(folder)
    for cell in (run / "cells").glob("[!.]*"):
        sweep_cell(cell)


def sweep_documents(run: Path) -> None:
    """The same outside of the cells, for a run folder that is locked and in whose cells others may be at work."""
    if _folders(run, _REPORT):
        with suppress(ValueError), locked(run / REPORT_LOCK, "run folder", busy="a report is being made", mend=""):
            for folder in _folders(run, _REPORT):
                shutil.rmtree(folder)
    for path in run.iterdir():
        if _TEXT.fullmatch(path.name) and path.is_file():
            path.unlink()


def sweep_cell(cell: Path) -> None:
    """All that is unfinished in the folder of a cell, but for the checkpoints of a fit that is not over."""
    for folder in (cell / "artifact.partial", *([cell / "fitting"] if (cell / "artifact").is_dir() else [])):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
    for home in (cell, cell / "second"):
        for records in (home / "records").glob("[!.]*.jsonl.partial"):
            records.unlink()
    for folder, below, files in os.walk(cell):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            if _TEXT.fullmatch(name):
                Path(folder, name).unlink()


def _folders(home: Path, named: re.Pattern[str]) -> list[Path]:
    return [path for path in home.glob(".*") if named.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
