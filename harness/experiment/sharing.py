"""Which cells of a run this process takes, where several share it: those it is asked for, one by one, by claims."""

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from harness.experiment.executors import Progress
from harness.experiment.reuse import Donor
from harness.plugins import alike
from harness.run_folder.adoption import adopt, adopt_part
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import Plan
from harness.run_folder.sweep import sweep_cell
from harness.run_folder.verify import mend_cell

WAIT_SECONDS = 1.0
"""How often cells are looked at that others run."""


def share_of(plan: Plan, only: Sequence[str], shard: str | None) -> list[str] | None:
    """The cells that ``only`` names, or those of ``shard`` (``i/n``: every n-th in the plan's order, from the i-th on);
    None where neither is given. ValueError for what is no shard, or no cell."""
    names = [cell.name for cell in plan.cells]
    if only and shard is not None:
        raise ValueError("--only and --shard both say which cells to run; give one of them")
    for name in only:
        if name not in names:
            raise ValueError(f"--only {name!r} is no cell of this suite{alike(name, names)}; --verbose prints its plan")
    if only:
        return [name for name in names if name in set(only)]
    if shard is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    number, count = map(int, found.groups()) if found is not None else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"--shard {shard!r} must be i/n with i from 1 to n, such as 1/8, 2/8, ... 8/8")
    return names[number - 1 :: count]


class Sharing(Collection[str]):
    """Those of the cells ``names`` that are ``lacking`` something, each handed out when this process has claimed it and
    nobody else brought it to an end since this was made. What was unfinished or damaged in it is gone by then.

    ``progress`` is told which cells end, here or elsewhere, but for those that ``donors`` have as a whole: they are
    copied.
    ``files`` is benchmark -> its evaluator's folder.
    """

    def __init__(
        self,
        folder: RunFolder,
        names: Sequence[str],
        *,
        lacking: Callable[[str], object],
        donors: Mapping[str, Donor],
        files: Mapping[str, str],
        progress: Progress,
    ) -> None:
        self._folder, self._claims, self._progress = folder, folder.claims, progress
        self._donors, self._files = donors, files
        self._before = {name: folder.cell(name).end for name in names}  # before they are looked into
        self.names = [name for name in names if lacking(name)]
        self._left, self._others, self._told = deque(self.names), list[str](), set[str]()

    def __len__(self) -> int:
        """How many it can be at most."""
        return len(self._left)

    def __contains__(self, name: object) -> bool:
        return name in self._left

    def __iter__(self) -> Iterator[str]:
        while self._left:
            if self._take(name := self._left.popleft()):
                cell, donor = self._folder.cell(name), self._donors.get(name)
                if donor is not None and not cell.path.exists():
                    adopt_part(cell, donor.folder.cell(name), donor.folder.plan.name)
                mend_cell(cell, self._files)
                yield name

    def more(self) -> bool:
        """Copy what can be copied; whether there are cells to take then.

        While others run all that are left, this waits for them to end, or for the death of their processes; False when
        all are over.
        """
        while True:
            self._copy()
            if self._left:
                return True
            if not (running := {name: self._claims.holder(name) for name in self._others if not self._is_over(name)}):
                return False
            self._others = [name for name, holder in running.items() if holder is not None]
            self._left.extend(name for name, holder in running.items() if holder is None)
            if self._left:
                continue
            for name in self._others:
                if name not in self._told:
                    self._told.add(name)
                    self._progress.stage(name, f"run by {running[name]}", 0)
            time.sleep(WAIT_SECONDS)

    def stage(self, cell: str, stage: str, records: int) -> None:
        """Pass on what an executor says: this is the `Progress` that it is to have."""
        self._progress.stage(cell, stage, records)

    def over(self, cell: str) -> None:
        self._claims.over(cell)
        self._progress.over(cell)

    def _copy(self) -> None:
        for name in [name for name in self._left if self._is_copied(name)]:
            cell, other = self._folder.cell(name), self._donors[name].folder
            if cell.path.exists():  # begun meanwhile, or copied by another process
                continue
            self._left.remove(name)
            if self._take(name):
                adopt(cell, other.cell(name), other.plan.name)
                self._claims.over(name)

    def _take(self, name: str) -> bool:
        if self._is_over(name):
            return False
        if not self._claims.take(name):
            self._others.append(name)
            return False
        if self._is_over(name):  # in between; the claim has no use any more
            self._claims.over(name)
            return False
        if (path := self._folder.cell(name).path).is_dir():
            sweep_cell(path)
        return True

    def _is_over(self, name: str) -> bool:
        """Whether another process brought the cell to its end since this was made; then it is said so."""
        mark = self._folder.cell(name).end
        over = mark is not None and mark != self._before[name]
        if over and not self._is_copied(name):
            self._progress.over(name)
        return over

    def _is_copied(self, name: str) -> bool:
        return name in self._donors and self._donors[name].whole


def missing(folder: RunFolder, plan: Plan) -> dict[str, str | None]:
    """The cells of a run that are not over, each with the living process that runs it (see `Taker.label`), or None."""
    claims = folder.claims
    left = [cell.name for cell in plan.cells if folder.cell(cell.name).end is None]
    return {name: claims.holder(name) for name in left}


def missing_text(cells: Mapping[str, str | None], planned: int) -> str:
    """``3 of 50 cells of the run are missing: node7:4711 runs 1, nobody runs 2``."""
    if not cells:
        return f"all {planned} cells of the run are over"
    runners = Counter(cells.values())
    nobody = runners.pop(None, 0)
    parts = [f"{holder} runs {count}" for holder, count in runners.items()]
    parts += [f"nobody runs {nobody}"] * bool(nobody)
    return f"{len(cells)} of {planned} cells of the run are missing: {', '.join(parts)}"
