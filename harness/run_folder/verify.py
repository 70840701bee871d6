"""Whether a run folder is what was written to it; and what is not, taken away so that a rerun makes just that again.

Not looked at: the report, which is made anew from the rest, logs, and what somebody else put there.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from harness.compute.bill import Bill
from harness.files import read_sealed, write_text
from harness.run_folder.cell import CellFolder
from harness.run_folder.layout import RunFolder
from harness.run_folder.left_out import LeftOut
from harness.run_folder.marks import Manifest, Mark, differences, marks_of
from harness.run_folder.plan import Environment, Plan
from harness.seals import check_text, read_line

T = TypeVar("T")
LEDGER = "judging/ledger.jsonl"
_TRIES, _PAUSE = 20, 0.5
_LAST = ("cell.json", Manifest.NAME)
"""What of a cell is written when something in it is over."""


def verify(run: RunFolder, *, thorough: bool) -> list[str]:
    """A sentence for every file that is missing, damaged or another than was written; ``thorough`` reads all of them,
    else large ones whose size and time are as they were are not read."""
    found = [*_documents(run)]
    found += [f"{name} {how}" for name, how in damage_outside_cells(run, thorough=thorough).items()]
    for journal in sorted(run.judging.glob("*.jsonl")):
        found += _lines(run, journal)
    try:
        cells = [run.cell(cell.name) for cell in run.plan.cells]
    except ValueError:  # named above
        cells = []
    names = [benchmark.name for benchmark in run.plan.benchmarks] if cells else []
    for cell in cells:
        for name, how in _unreliable(cell, names if thorough else (), thorough=thorough).items():
            about = f"cells/{cell.path.name}/{name}"
            found.append(_short(run, how) if str(run.path) in how else f"{about} {how}")
    return found


def unverified(run: RunFolder) -> list[str]:
    """Names of the cells that an older version finished: nothing says what their files were."""
    states = ((cell.name, run.cell(cell.name).state) for cell in run.plan.cells)
    return [name for name, state in states if state is not None and state.files is None]


def undisturbed(folder: str | Path, read: Callable[[], T]) -> T:
    """What ``read`` gives of the run in ``folder`` when no process that works there changed anything meanwhile.

    Else it is read again. What it raises is raised where nothing was changed; ValueError where something always is.
    """
    folder = Path(folder)
    for _ in range(_TRIES):
        before = _documents_now(folder)
        try:
            found = read()
        except (ValueError, OSError):
            if _documents_now(folder) == before:
                raise
        else:
            if _documents_now(folder) == before:
                return found
        time.sleep(_PAUSE)
    raise ValueError(f"run folder {str(folder)!r} is changed all the time; wait for the run that works there")


def _documents_now(folder: Path) -> dict[str, tuple[int, int]]:
    """What is rewritten whenever a run begins, mends, goes on or ends: file -> (inode, time of change)."""
    found = {}
    cells = os.listdir(folder / "cells") if (folder / "cells").is_dir() else []
    # By names and not by patterns, which take ten times as long with thousands of cells.
    for path in (*folder.glob("*.json"), *(f"{folder}/cells/{cell}/{name}" for cell in cells for name in _LAST)):
        with suppress(FileNotFoundError, NotADirectoryError):
            stat = os.stat(path)
            found[str(path)] = (stat.st_ino, stat.st_mtime_ns)
    return found


def opened(path: str | Path) -> RunFolder:
    """`RunFolder.open`, and ValueError with the command that makes them again where files are not what was written."""
    run = RunFolder(path)
    if not all((run.path / name).exists() for name in ("suite.yaml", "plan.json", "environment.json", "cells")):
        return RunFolder.open(path)  # which says what it is instead
    if found := verify(run, thorough=False):
        more = f"\n  ... and {len(found) - 10} more" if len(found) > 10 else ""
        shown = "".join(f"\n  {line}" for line in found[:10])
        raise ValueError(
            f"run folder {str(run.path)!r} is not as it was written; these files are damaged:{shown}{more}\n"
            f"the run's own command makes them again: {repair_command(run)}"
        )
    return RunFolder.open(path)


def repair_command(run: RunFolder) -> str:
    """What makes damaged files again; with the folder's own suite.yaml where that is whole. A comparison of runs is
    made again from those."""
    if compared_by := comparison(run):
        return compared_by
    whole = not any(line.startswith("suite.yaml") for line in _documents(run))
    suite = str(run.path / "suite.yaml") if whole else "SUITE"
    return f"dspa-bench run {suite} --out {run.path}"


def comparison(run: RunFolder) -> str | None:
    """The command that made ``run`` a comparison of others; None for a run of a suite.

    Where environment.json does not say, a folder whose cells all come from other runs is taken for one."""
    with suppress(ValueError):
        environment = Environment.read(run.path / "environment.json")
        return environment.command if environment.compared else None
    origins = set()
    for cell in map(CellFolder, (run.path / "cells").glob("[!.]*")):
        with suppress(ValueError):
            origins.add(cell.state and cell.state.origin)
    return f"dspa-bench compare RUN RUN ... --out {run.path}" if origins and None not in origins else None


def outside_cells(run: RunFolder) -> dict[str, Mark]:
    """The marks of what lies outside the cells and is not whole by itself: journals of judges, the folders that
    `Judge.prepare` made, and left_out.json."""
    found = [*run.judging.glob("*.jsonl"), *run.judging.glob("[!.]*/**/*"), run.path / "left_out.json"]
    names = [path.relative_to(run.path).as_posix() for path in found if path.is_file()]
    return marks_of(run.path, [name for name in names if ".partial/" not in name and "/." not in name])


def damage_outside_cells(run: RunFolder, *, thorough: bool = False) -> dict[str, str]:
    """File -> how it differs from its mark in environment.json; {} where that cannot be read. Journals may grow."""
    try:
        marks = Environment.read(run.path / "environment.json").files or {}
    except ValueError:
        return {}
    journals = [name for name in marks if name.endswith(".jsonl") and name.count("/") == 1]
    return differences(run.path, marks, thorough=thorough, growing=journals)


def mend_outside_cells(run: RunFolder) -> bool:
    """Remove the folders of reward models that are not what was written, which `Judge.prepare` then trains again, and
    damaged replies, which are asked for again; whether there was anything to mend. Nobody else may be writing."""
    damage = damage_outside_cells(run)
    for name in damage:
        kept, _, inside = name.removeprefix("judging/").partition("/")
        if inside:
            shutil.rmtree(run.judging / kept, ignore_errors=True)
    replies = run.judging / "replies.jsonl"
    lines = replies.read_bytes().split(b"\n")[:-1] if replies.is_file() else []
    whole = [line for line in lines if _is_whole(line)]
    if len(whole) < len(lines):
        write_text(replies, b"".join(line + b"\n" for line in whole).decode("ascii"))
    return bool(damage) or len(whole) < len(lines)


def mend_cell(cell: CellFolder, files: Mapping[str, str]) -> None:
    """Remove what cannot be relied on, and what was made from it; ``files`` is benchmark -> its evaluator's folder.

    A bill is taken from its artifact. Without artifact or tuning the fit is made again, and every record with it;
    answers are kept, because they are found again by their model's fingerprint.
    """
    damaged = _unreliable(cell, files)
    again, second = _unsealed(cell, files)
    if not damaged and not again and not second:
        return
    fit = False
    for name in damaged:
        top, _, rest = name.partition("/")
        inner, stem = rest.partition("/")[0], Path(name).stem
        if top in ("records", "diagnostics"):
            again.add(stem)
        elif top == "answers":
            (cell.path / name).unlink(missing_ok=True)
            again.add(stem)
        elif top == "second":
            second |= {stem} if inner == "records" else {one for one in files if files[one] == inner}
        elif name == "compute.json":
            fit |= not _bill_from_artifact(cell, damaged)
        elif top in ("artifact", "tuning"):
            fit = True
            shutil.rmtree(cell.path / top, ignore_errors=True)
        elif name == "training.jsonl":  # the curve is made by training
            fit = True
            (cell.path / name).unlink(missing_ok=True)
        elif name not in ("cell.json", Manifest.NAME):
            again |= {one for one in files if files[one] == top} or set(files)
            shutil.rmtree(cell.path / top, ignore_errors=True)
    cell.reopen()
    if fit:
        forget_fit(cell, files)
    forget_results(cell, files, again, second)
    cell.manifest.drop(*damaged)


def forget_fit(cell: CellFolder, files: Mapping[str, str]) -> None:
    """Remove artifact, bill and every result, so that the fit is made again."""
    shutil.rmtree(cell.artifact, ignore_errors=True)
    (cell.path / "compute.json").unlink(missing_ok=True)
    forget_results(cell, files, files, files)
    cell.manifest.drop("training.jsonl")


def forget_results(cell: CellFolder, files: Mapping[str, str], again: Collection[str], second: Collection[str]) -> None:
    """Remove the records of the benchmarks ``again``, and of those that the second judge is to judge once more."""
    for home, names in ((cell.path, again), (cell.path / "second", second)):
        for name in names:
            (home / "records" / f"{name}.jsonl").unlink(missing_ok=True)
            (home / "diagnostics" / f"{name}.json").unlink(missing_ok=True)
            if name in files:
                shutil.rmtree(home / files[name], ignore_errors=True)


def _unsealed(cell: CellFolder, benchmarks: Iterable[str]) -> tuple[set[str], set[str]]:
    """The benchmarks, and those of the second judge, with records that nothing in a cell that is not over vouches for:
    its process was killed before it could mark them, or the marks are lost."""
    try:
        if cell.state is not None:
            return set(), set()
    except ValueError:  # a damaged cell.json vouches for nothing
        pass
    try:
        marked = cell.manifest.marks
    except ValueError:
        marked = {}
    homes = (("", cell), ("second/", cell.second))
    first, second = (
        {one for one in benchmarks if home.has_records(one) and f"{under}records/{one}.jsonl" not in marked}
        for under, home in homes
    )
    return first, second


def _unreliable(cell: CellFolder, benchmarks: Iterable[str], *, thorough: bool = False) -> dict[str, str]:
    """File -> what is wrong with it, in a cell that is over or not; those of ``benchmarks`` are read for it, too."""
    try:
        found = cell.damage(thorough=thorough)
    except ValueError as problem:
        found = {"cell.json": str(problem), **cell.manifest.differences(thorough=thorough)}

    def look(name: str, read: Callable[[], object]) -> None:
        try:
            read()
        except ValueError as problem:
            found.setdefault(name, str(problem))

    for name in benchmarks:
        look(f"records/{name}.jsonl", lambda name=name: cell.records(name))
        look(f"second/records/{name}.jsonl", lambda name=name: cell.second.records(name))
        look(f"answers/{name}.jsonl", lambda name=name: cell.answers(name).get(""))
        look(f"diagnostics/{name}.json", lambda name=name: cell.diagnostics(name))
    look("tuning/trials.jsonl", lambda: cell.tuning.trials)
    look("tuning/best.json", lambda: cell.tuning.best)
    if cell.artifact.is_dir():
        look("compute.json", lambda: Bill.read(cell.path / "compute.json"))
    return found


def _bill_from_artifact(cell: CellFolder, damaged: Collection[str]) -> bool:
    """Write compute.json anew from aligned.json, which holds the bill too; whether that is possible."""
    if any(name.startswith("artifact/") for name in damaged):
        return False
    try:
        cell.save_bill(Bill.model_validate(json.loads((cell.artifact / "aligned.json").read_bytes())["bill"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _documents(run: RunFolder) -> Iterator[str]:
    """What is wrong with the run's own documents."""
    try:
        outside = Environment.read(run.path / "environment.json").files
    except ValueError:  # named below
        outside = None
    readers: dict[str, Callable[[Path], object]] = {
        "suite.yaml": lambda path: check_text(path.read_bytes(), sealed=outside is not None),
        "identity.json": read_sealed,
        "plan.json": Plan.read,
        "environment.json": Environment.read,
    }
    if (run.path / "left_out.json").is_file():
        readers["left_out.json"] = LeftOut.read
    for name, read in readers.items():
        if not (run.path / name).is_file():
            if name != "identity.json" or outside is not None:
                yield f"{name} is missing"
            continue
        try:
            read(run.path / name)
        except ValueError as problem:
            yield f"{name}: {_short(run, str(problem)).removeprefix(f'{name}: ')}"


def _is_whole(line: bytes) -> bool:
    try:
        read_line(line)
    except ValueError:
        return False
    return line.isascii()


def _lines(run: RunFolder, journal: Path) -> Iterator[str]:
    for number, line in enumerate(journal.read_bytes().split(b"\n")[:-1], 1):
        try:
            read_line(line)
        except ValueError as problem:
            yield f"{journal.relative_to(run.path)}:{number}: {problem}"


def _short(run: RunFolder, problem: str) -> str:
    """A complaint with paths relative to the run."""
    return problem.replace(f"{run.path}/", "")
