"""Claims on the cells of a run: taken once, free again when the taker is gone, whatever host it was on."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest

from harness.run_folder import claims as claims_module
from harness.run_folder.claims import BEAT_SECONDS, EXPIRE_SECONDS, Claims, Taker

CELL = "dpo@beta=0.1__n8__s0"


@pytest.fixture
def clock(monkeypatch):
    """The clock that silence is counted by, which stands still."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(claims_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def mine(tmp_path):
    mine = Claims(tmp_path)
    mine.enter("")
    yield mine
    mine.leave()


def taken_by(tmp_path, **changes) -> Taker:
    """Another taker, that has the cell."""
    taker = Taker.me("--shard 2/3").model_copy(update=changes)
    for folder in ("takers", "cells"):
        (tmp_path / "claims" / folder).mkdir(parents=True, exist_ok=True)
    taker.write(tmp_path / "claims" / "takers" / f"{taker.name}.json")
    (tmp_path / "claims" / "cells" / f"{CELL}.0").write_text(taker.name)
    return taker


def elapse(claims: Claims, clock, seconds: float) -> None:
    """So much time, in which a process looks every two beats."""
    for _ in range(round(seconds / (2 * BEAT_SECONDS))):
        clock.now += 2 * BEAT_SECONDS
        claims.others()


def test_of_many_takers_one_has_each_cell(tmp_path):
    takers = [Claims(tmp_path) for _ in range(8)]
    for taker in takers:
        taker.enter("")
    cells = [f"cell{number}" for number in range(50)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda taker: [cell for cell in cells if taker.take(cell)], takers))
    assert sorted(cell for some in taken for cell in some) == sorted(cells)
    for taker in takers:
        assert len(taker.others()) == 7
    for taker in takers:
        taker.leave()
    takers[0].clear()
    assert list(tmp_path.iterdir()) == []


def test_what_a_taker_leaves_is_free_and_is_taken_by_one(tmp_path, mine):
    first, third = Claims(tmp_path), Claims(tmp_path)
    first.enter("--only")
    third.enter("")
    assert first.take(CELL)
    assert not mine.take(CELL)
    assert mine.holder(CELL) == f"{claims_module.socket.gethostname()}:{os.getpid()} (--only)"
    assert (first.leave(), first.leave()) == (True, False)
    assert mine.holder(CELL) is None
    assert [mine.take(CELL), third.take(CELL), mine.take(CELL)] == [True, False, False]
    third.leave()


def test_a_process_of_this_host_that_ended_is_gone_after_its_workers(tmp_path, mine, clock):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(ended.pid).create_time()
    ended.wait()
    taken_by(tmp_path, pid=ended.pid, started=started)
    assert mine.others() == []
    assert not mine.take(CELL), "its workers may need a moment"
    clock.now += 2
    assert mine.take(CELL)


def test_a_living_process_of_this_host_need_not_beat_and_its_id_may_be_used_again(tmp_path, mine, clock):
    taken_by(tmp_path)
    elapse(mine, clock, 10 * EXPIRE_SECONDS)
    assert not mine.take(CELL)
    taken_by(tmp_path, started=psutil.Process().create_time() - 100)
    clock.now += 2
    assert not mine.take(CELL)
    clock.now += 2
    assert mine.take(CELL)


def test_a_process_of_another_host_is_gone_when_it_was_seen_silent_for_long(tmp_path, mine, clock):
    taker = taken_by(tmp_path, space="another host")
    assert mine.others() == [taker]
    elapse(mine, clock, EXPIRE_SECONDS - 2 * BEAT_SECONDS)
    assert not mine.take(CELL)
    os.utime(tmp_path / "claims" / "takers" / f"{taker.name}.json", (1, 1))  # its clock may be wrong by years
    elapse(mine, clock, EXPIRE_SECONDS - 2 * BEAT_SECONDS)
    assert not mine.take(CELL)
    elapse(mine, clock, 4 * BEAT_SECONDS)
    assert mine.others() == []
    assert mine.take(CELL)


def test_time_in_which_nobody_looked_is_no_silence(tmp_path, mine, clock):
    taken_by(tmp_path, space="another host")
    for _ in range(5):  # a file server that stops for an hour, or this process does
        assert not mine.take(CELL)
        clock.now += 3600


def test_a_claim_whose_writer_died_in_the_middle_is_free_after_a_while(tmp_path, mine, clock):
    taken_by(tmp_path)
    (tmp_path / "claims" / "cells" / f"{CELL}.0").write_text("")
    assert not mine.take(CELL)
    assert mine.holder(CELL) == "a process that is just starting"
    for _ in range(20):
        clock.now += BEAT_SECONDS
        mine.holder(CELL)
    assert mine.take(CELL)


WAKES_UP = """
import sys, time
from pathlib import Path
from harness.run_folder import claims
claims.BEAT_SECONDS = 0.05
mine = claims.Claims(Path(sys.argv[1]))
mine.enter("")
assert mine.take("cell") and mine.take("other")
mine.over("other")
(Path(sys.argv[1]) / "claims" / "cells" / "other.1").touch()
time.sleep(0.5)
print("over", flush=True)
(Path(sys.argv[1]) / "claims" / "cells" / "cell.1").touch()
time.sleep(60)
"""


def test_a_process_that_was_taken_for_dead_ends_at_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", WAKES_UP, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "over\n")
    assert done.stderr.startswith("error: this process gave no sign of life for 180 seconds, and others took cell;")
