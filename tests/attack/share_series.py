"""Eight processes at one run folder, some of which are killed at random moments and started again at once.

The suite is that of `kill_series`, with more cells. What comes of it must be what one process makes without a kill: no
cell lost, none brought to its end twice, no verdict paid twice but for those that were open at a kill.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.kill_series import Killing, Row, _end, _judge, _suite

PROCESSES = 8
MORE = ("--set", "seeds=4", "--set", "budgets=[4,8]")
"""20 cells."""
LONGEST_PAUSE = 1.5
"""Seconds between two kills, at most."""


@dataclass
class Sharing(Killing):
    """``held``: how many of the killed processes had a cell."""

    held: list[int] = field(default_factory=list)

    def begin(self, out: Path, workers: int, *more: str) -> int:
        """As `Killing.begin`; each end of a cell is noted in a file beside ``out``."""
        from harness.run_folder import CellFolder, CellState

        finish = CellFolder.finish

        def noted(self: CellFolder, state: CellState, traceback: str | None = None) -> None:
            finish(self, state, traceback)
            with Path(f"{out}.ends").open("a") as file:
                file.write(f"{self.path.name}\n")

        CellFolder.finish = noted  # for the fork that is made now
        try:
            return super().begin(out, workers, *MORE, *more)
        finally:
            CellFolder.finish = finish

    def together(self, what: str, kills: int, *, shards: bool) -> Row:
        """`PROCESSES` of them, each with its shard or all with the whole suite; ``kills`` are killed."""
        out, paid, before = self.folder / what.replace(" ", "-"), self.paid(), len(self.wrong)
        shares = [["--shard", f"{n + 1}/{PROCESSES}"] if shards else [] for n in range(PROCESSES)]
        running = {self.begin(out, 1, *share): share for share in shares}
        killed, due = 0, time.monotonic() + self._pause()
        while running:
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    share = running.pop(pid)
                    self._expect(status == 0, f"{what}: {share} ended with {status}")
            if running and killed < kills and time.monotonic() >= due:
                pid = self.draw.choice(list(running))
                self.held.append(self._cells_of(out, pid))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                _end(pid)
                share = running.pop(pid)
                running[self.begin(out, 1, *share)] = share
                killed, due = killed + 1, time.monotonic() + self._pause()
            time.sleep(0.02)
        twice = [cell for cell, times in Counter(Path(f"{out}.ends").read_text().split()).items() if times > 1]
        self._expect(not twice, f"{what}: {twice} were brought to their end twice")
        self._expect(killed == kills, f"{what}: over after {killed} kills")
        self._expect(not (out / "claims").exists(), f"{what}: claims are left")
        said = Path(f"{out}.said").read_text()
        self._expect("Traceback" not in said, f"{what}: said {said[-2000:]}")
        self._expect((out / "report" / "report.md").is_file(), f"{what}: there is no report")
        self._compare(out, self.paid() - paid)
        wrong = len(self.wrong) - before
        return what, killed, max(0, killed - wrong), 0, wrong

    def _pause(self) -> float:
        return self.draw.uniform(0.0, LONGEST_PAUSE)

    def _cells_of(self, out: Path, pid: int) -> int:
        """How many cells a process has at this moment."""
        from harness.run_folder import RunFolder

        with suppress(ValueError, OSError):
            run = RunFolder(out)
            left = [cell.name for cell in run.plan.cells if run.cell(cell.name).state is None]
            return sum(f":{pid}" in (run.claims.holder(name) or "") for name in left)
        return 0


def run(kills: int = 10, seed: int = 0) -> list[Row]:
    """``kills`` among processes with a shard each, and as many among processes with the whole suite."""
    with tempfile.TemporaryDirectory(prefix="dspa-bench-shares-") as folder, _judge(Path(folder) / "asked") as url:
        sharing = Sharing(Path(folder), _suite(Path(folder), url), Path(folder) / "asked", random.Random(seed))
        sharing.uninterrupted()
        rows = [
            sharing.together("eight shards", kills, shards=True),
            sharing.together("eight of the whole suite", kills, shards=False),
        ]
        for line in sharing.wrong:
            print(f"wrong: {line}", file=sys.stderr)
        alone = (
            f"one process took {sharing.seconds:.0f} s; {sum(sharing.held)} of {len(sharing.held)} killed had a cell"
        )
        print(f"{alone}; {sharing.repeated} requests were sent again", file=sys.stderr)
        return rows


def main(arguments: Sequence[str]) -> int:
    """``python -m tests.attack.share_series [KILLS SEED]``: exit code 1 if anything went wrong."""
    rows = run(*map(int, arguments))
    print(*rows, sep="\n")
    return 1 if any(row[-1] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
