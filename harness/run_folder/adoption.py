"""Cells that are copied from another run: whole, without benchmarks that it lacks, or as far as no judge had a word."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from harness.references import rebase
from harness.run_folder.cell import CellFolder


def adopt(cell: CellFolder, other: CellFolder, run: str) -> None:
    """Make ``cell``, which must not exist, a copy of ``other``, a cell that is over of the run called ``run``."""
    state = other.state
    assert state is not None
    copy = _copy(cell, other)
    copied = state.model_copy(update={"origin": state.origin or run})
    if state.files is None:
        copied.write(copy.path / "cell.json")
    else:
        copy.declare(copied)
    copy.path.rename(cell.path)


def adopt_part(cell: CellFolder, other: CellFolder, run: str) -> None:
    """The same as a cell that was begun: what ``other`` lacks of this run's benchmarks is still to be made."""
    copy = _copy(cell, other)
    copy.reopen()
    copy.manifest.seal()
    with copy.log.open("a", encoding="utf-8") as log:
        log.write(f"copied from the run {run}, without some of this one's benchmarks\n")
    copy.path.rename(cell.path)


def adopt_answers(cell: CellFolder, other: CellFolder, judged: Mapping[str, str]) -> None:
    """The same without cell.json, the second judge's verdicts, and the records and files of the benchmarks ``judged``
    (name -> its folder in a cell): what is left is a cell that is to be judged."""
    copy = _copy(cell, other)
    copy.reopen()
    shutil.rmtree(copy.second.path, ignore_errors=True)
    for name, folder in judged.items():
        (copy.path / "records" / f"{name}.jsonl").unlink(missing_ok=True)
        shutil.rmtree(copy.path / folder, ignore_errors=True)
    copy.manifest.seal()
    copy.path.rename(cell.path)


def _copy(cell: CellFolder, other: CellFolder) -> CellFolder:
    """A copy beside ``cell``, under the name that a killed process's is swept by."""
    partial = cell.path.with_name(f".{cell.path.name}.adopted")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process's
    shutil.copytree(other.path, partial, copy_function=_copy_file)
    rebase(partial / "artifact", other.artifact)  # which may change a file, and so its mark
    return CellFolder(partial)


def _copy_file(source: str, target: str) -> None:
    """Weights, which nobody writes to, are linked where the disk can, because there may be much of them."""
    if Path(source).suffix == ".safetensors":
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
