"""A run folder that is looked at while it may still grow: what is there now, and the page made of it."""

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.run_folder import CellFolder, RunFolder
from reports import findings
from reports.page import leaderboard
from reports.page.archive import Packer
from reports.page.build import html_report
from reports.render import tables_of
from reports.run import Run, read_run
from reports.training import write_training_figure

SHARE = 0.1
"""Most of one core's time that goes into making the page anew while a run goes on."""


@dataclass(frozen=True)
class Snapshot:
    """The run as it was at ``version`` (see `Watched.version`); ``page`` is its HTML."""

    version: str
    run: Run
    board: leaderboard.Leaderboard
    packer: Packer
    page: str


class Watched:
    """The run in ``folder``, which ``served`` says to its page: the places of all runs that are served with it."""

    def __init__(self, folder: Path, served: dict[str, Any]) -> None:
        self.folder = folder
        self._served = served
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._rest_until = 0.0
        self._problem: str | None = None

    def snapshot(self, *, as_it_is: bool = False) -> Snapshot:
        """What is there now, or was a little while ago: making it takes seconds, and a run is at work beside it.

        With ``as_it_is`` what was made last, where anything was. Raises ValueError as `read_run` does when nothing
        could be read yet; later an earlier snapshot stands in for a folder that cannot be read, and `state` says why.
        """
        if as_it_is and self._snapshot is not None:
            return self._snapshot
        with self._lock:
            made, began = self._snapshot, time.monotonic()
            if made is not None and began < self._rest_until:
                return made
            version = self.version()
            if made is None or version != made.version:
                try:
                    made, self._problem = self._made(version), None
                except (ValueError, OSError) as problem:  # a file may be half there while the run writes it
                    self._problem = str(problem)
                    if made is None:
                        raise
                self._rest_until = time.monotonic() + (time.monotonic() - began) * (1 / SHARE - 1)
                self._snapshot = made
            return made

    def _made(self, version: str) -> Snapshot:
        run = read_run(self.folder, at_work=True)
        found = tables_of(run)
        drops = findings.drops(run, found["comparison"])
        board = leaderboard.leaderboard(run, found["comparison"], found["differences"], drops)
        with TemporaryDirectory() as place:
            curves = write_training_figure(run, Path(place))
        page = html_report(run, found, training=curves, served=self._served | {"version": version})
        return Snapshot(version, run, board, Packer(run), page)

    def version(self) -> str:
        """Changes whenever something that a report reads is there anew."""
        digest = hashlib.sha256()
        for path in self._looked_at():
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            digest.update(f"{path}:{found.st_mtime_ns}:{found.st_size}\n".encode())
        return digest.hexdigest()[:16]

    def _looked_at(self) -> Iterator[Path]:
        yield from (self.folder / "plan.json", self.folder / "environment.json")
        for cell in sorted((self.folder / "cells").glob("[!.]*")):
            yield cell / "cell.json"
            yield from sorted(cell.glob("records/[!.]*.jsonl"))
            yield from sorted(cell.glob("second/records/[!.]*.jsonl"))

    def state(self) -> dict[str, Any]:
        """How far the run is, for its page: ``version`` of the newest snapshot, which is made if it is time, cells
        ``over`` of ``planned``, how many of them ``failed``, what those ``working`` have done so far, ``quiet`` seconds
        since they last wrote something (null where none is at work), and the ``problem`` of a folder that cannot be
        read (else null). ValueError as `snapshot`."""
        snapshot, folder = self.snapshot(), RunFolder(self.folder)
        try:
            states = {cell.name: folder.cell(cell.name).state for cell in folder.plan.cells}
        except ValueError as problem:
            return {"version": snapshot.version, "problem": str(problem)}
        begun = [folder.cell(name) for name, state in states.items() if state is None]
        begun = [cell for cell in begun if cell.path.is_dir()]
        newest = max(map(_last_written, begun), default=None)
        return {
            "version": snapshot.version,
            "over": sum(state is not None for state in states.values()),
            "failed": sum(state is not None and state.status == "failed" for state in states.values()),
            "planned": len(states),
            "working": [_progress(cell, [b.name for b in folder.plan.benchmarks]) for cell in begun],
            "quiet": None if newest is None else max(0, round(time.time() - newest)),
            "problem": self._problem,
        }


def _progress(cell: CellFolder, benchmarks: list[str]) -> dict[str, str]:
    """What one cell has done so far, in words."""
    done = [name for name in benchmarks if (cell.path / "records" / f"{name}.jsonl").is_file()]
    said = [f"{', '.join(done)} done"] if done else []
    for name in benchmarks:
        answers = _lines(cell.path / "answers" / f"{name}.jsonl")
        if name not in done and answers:
            records = len(_lines(cell.path / "records" / f"{name}.jsonl.partial"))
            written = sum(not line.startswith(b'{"batch"') for line in answers)
            said.append(f"{name}: {written} answers, {records} records")
    if not said:
        trials = len(_lines(cell.path / "tuning" / "trials.jsonl"))
        said = ["fitted"] if cell.artifact.is_dir() else [f"{trials} trials done" if trials else "fitting"]
    return {"cell": cell.path.name, "done": "; ".join(said)}


def _lines(path: Path) -> list[bytes]:
    """The whole lines that are there so far."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def _last_written(cell: CellFolder) -> float:
    found = [cell.path, *cell.path.glob("*"), *cell.path.glob("[!.]*/*")]
    return max((path.stat().st_mtime for path in found if path.exists()), default=0.0)
