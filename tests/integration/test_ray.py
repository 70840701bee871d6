"""A Ray cluster of two nodes on this machine gives the local results, also when workers, nodes and drivers die."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from harness.experiment.run import prepare, run_suite
from harness.run_folder import RunFolder
from tests.integration.test_run import environment
from tests.ray_nodes import new_cluster, node
from tests.toys import NoProgress, cell_states, outcome, write_suite
from tests.waiting import wait_until

pytestmark = pytest.mark.scale
KILLS = int(os.environ.get("DSPA_BENCH_NODE_KILLS", "3"))
PROGRAM = "from harness.cli import main; main()"


@pytest.fixture(scope="module")
def cluster():
    cluster = new_cluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def nodes(cluster):
    """Two nodes, new for each test; a test may kill them."""
    nodes = [cluster.add_node(**node()) for _ in range(2)]
    cluster.wait_for_nodes()
    yield nodes
    for one in nodes:
        if one in cluster.worker_nodes:
            cluster.remove_node(one, allow_graceful=False)


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_folders) -> Path:
    benchmark = {"name": "toy_bench", "questions": "questions.jsonl", "pause": 0.2}
    return write_suite(tmp_path_factory.mktemp("suite"), tiny_folders["llama"], benchmarks=[benchmark])


@pytest.fixture(scope="module")
def local(suite, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "local"
    assert run_suite(prepare(suite, out, ["benchmarks.0.pause=0"]), NoProgress()) == {}
    return out


@pytest.fixture
def on_ray(cluster, nodes):
    """Runs a suite on the cluster; how it ended, and what was told."""

    def run(suite: Path, out: Path, *overrides: str, progress: NoProgress | None = None):
        progress = progress or NoProgress()
        where = ["execution.executor=ray", f"execution.address='{cluster.address}'", *overrides]
        return run_suite(prepare(suite, out, where), progress), progress.told

    return run


def test_the_results_are_the_local_executors_and_say_where_they_were_made(suite, local, tmp_path, on_ray):
    failures, told = on_ray(suite, tmp_path / "run")
    assert failures == {}
    assert outcome(tmp_path / "run") == outcome(local)
    hosts = {state.host for state in cell_states(tmp_path / "run").values()}
    assert len(hosts) == 2 and all(host is not None for host in hosts)
    assert sum(what == "over" for _, what, *_ in told) == 8
    assert {cell for cell, what, *_ in told if what in ("fit", "toy_bench")} == cell_states(local).keys()


class Deadly(NoProgress):
    """Does something once, when the second cell is over."""

    def __init__(self, kill) -> None:
        super().__init__()
        self._kill = kill

    def over(self, cell: str) -> None:
        super().over(cell)
        if sum(what == "over" for _, what, *_ in self.told) == 2:
            self._kill()


def test_cells_of_a_node_that_is_killed_are_made_elsewhere(suite, local, tmp_path, cluster, nodes, on_ray):
    progress = Deadly(lambda: cluster.remove_node(nodes[0], allow_graceful=False))
    failures, _ = on_ray(suite, tmp_path / "run", progress=progress)
    assert failures == {}
    assert outcome(tmp_path / "run") == outcome(local)
    lost = [state for state in cell_states(tmp_path / "run").values() if state.lost]
    assert len(lost) <= 1 and all(nodes[1].node_id[:8] in state.host for state in lost)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_nodes_that_are_killed_at_random_moments_change_nothing(tmp_path, tiny_folders, cluster, nodes, on_ray):
    dpo = {"name": "dpo", "method": "dpo", "params": {"tuning": "lora", "batch_size": 2, "lora_dropout": 0.1}}
    fits = [{"name": "noise", "method": "toy_noise", "params": {"scale": 0.2}}, dpo]
    suite = write_suite(tmp_path / "suite", tiny_folders["llama"], variants=fits, seeds=3, report=None)
    assert run_suite(prepare(suite, tmp_path / "local"), NoProgress()) == {}
    start = time.monotonic()
    assert on_ray(suite, tmp_path / "whole")[0] == {}
    seconds, draw, lost = time.monotonic() - start, random.Random(KILLS), 0
    for number in range(KILLS):
        out, victim = tmp_path / f"killed{number}", nodes.pop(0)
        # A node joins for the one that goes, so that the next series begins with two again.
        kill = threading.Timer(seconds * draw.uniform(0.1, 0.9), cluster.remove_node, (victim, False))
        nodes.append(cluster.add_node(**node()))
        kill.start()
        failures, told = on_ray(suite, out)
        kill.join()
        assert failures == {}
        assert outcome(out) == outcome(tmp_path / "local")
        assert not [*out.rglob("*.partial"), *out.rglob(".[!l]*")]
        over = Counter(cell for cell, what, *_ in told if what == "over")
        assert set(over.values()) == {1} and len(over) == 12, "each cell is brought to its end once"
        lost += sum(len(state.lost) for state in cell_states(out).values())
    print(f"{KILLS} nodes killed, {lost} cells begun again")


def test_a_cell_that_kills_its_workers_is_named_and_others_are_not_disturbed(tmp_path, tiny_folders, on_ray):
    variants = [{"name": n, "method": "toy_noise", "params": {"scale": s}} for n, s in (("deadly", 200), ("good", 0.1))]
    suite = write_suite(tmp_path / "suite", tiny_folders["llama"], variants=variants, budgets=[4], report=None)
    failures, _ = on_ray(suite, tmp_path / "run", "execution.retries=1")
    assert list(failures) == ["deadly__n4__s0", "deadly__n4__s1"]
    for (reason,) in failures.values():
        assert "worker process died on" in reason and "as in 1 attempts before" in reason
    states = cell_states(tmp_path / "run")
    assert len(states["deadly__n4__s0"].lost) == 2
    assert all(states[f"good__n4__s{seed}"].status == "done" for seed in (0, 1))


def test_a_worker_that_hangs_is_ended_named_and_its_cell_begun_once_more(tmp_path, tiny_folders, on_ray):
    until = {"stopped": str(tmp_path / "stopped"), "asleep": "never"}
    fits = [{"name": n, "method": "toy_noise", "params": {"stop_until": u}} for n, u in until.items()]
    suite = write_suite(tmp_path / "suite", tiny_folders["llama"], variants=fits, seeds=1, budgets=[4], report=None)
    failures, _ = on_ray(suite, tmp_path / "run", "execution.hung_minutes=0.15")
    log = RunFolder(tmp_path / "run").cell("asleep__n4__s0").log
    how = "no progress for 0.15 minutes in fit"
    assert failures == {"asleep__n4__s0": [f"worker process hung twice ({how}) and was ended; see {log}"]}
    assert "toys.py" in log.read_text(), "where it was"
    assert cell_states(tmp_path / "run")["stopped__n4__s0"].hung == how


def test_the_same_command_goes_on_after_its_driver_was_killed_or_interrupted(suite, local, tmp_path, cluster, nodes):
    out = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, "run", suite, "--out", out, "--executor", "ray"]
    command += ["--address", cluster.address]
    for number, code, done in ((signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 3), (signal.SIGINT, 130, 5)):
        driver = subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_until(lambda done=done: len(list(out.glob("cells/*/cell.json"))) >= done, driver)
        driver.send_signal(number)
        _, errors = driver.communicate()
        assert driver.returncode == code, errors
        if number != signal.SIGKILL:
            assert errors.splitlines()[-1].endswith("; give the same command again to go on"), errors
            assert not [*out.rglob("*.partial"), *out.rglob(".[!l]*")], "nothing unfinished stays"
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")}
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what is over is not made again"
    assert outcome(out) == outcome(local)


def test_a_cluster_that_is_not_there_or_has_no_room_is_refused_before_any_work(suite, tmp_path, on_ray):
    with pytest.raises(ValueError, match=r"no node of the Ray cluster has the 1 CPUs and 2 GPUs of a cell"):
        on_ray(suite, tmp_path / "run", "execution.per_cell.gpus=2")
    import ray

    ray.shutdown()
    with pytest.raises(ValueError, match=r"no Ray cluster at '127.0.0.1:1' .*ray start --head"):
        prepare(suite, tmp_path / "run", ["execution.executor=ray", "execution.address='127.0.0.1:1'"])
    assert not (tmp_path / "run").exists()


def test_a_run_without_nodes_waits_for_one(suite, local, tmp_path, cluster, nodes, on_ray):
    class Waiting(Deadly):
        def stage(self, cell: str, stage: str, records: int) -> None:
            super().stage(cell, stage, records)
            if "waits for one" in stage:
                nodes.append(cluster.add_node(**node()))

    progress = Waiting(lambda: [cluster.remove_node(one, allow_graceful=False) for one in list(nodes)])
    failures, _ = on_ray(suite, tmp_path / "run", progress=progress)
    assert failures == {}
    assert len(nodes) == 3, "it said that it waits, once"
    assert outcome(tmp_path / "run") == outcome(local)
