"""Ray nodes that do not see the driver's files: these travel to them, and cells come back, to the same results."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from harness.experiment.run import prepare, run_suite
from harness.judging.ledger import read_accounts
from tests.judge_server import serving
from tests.ray_nodes import new_cluster, node, ray
from tests.toys import NoProgress, cell_states, outcome, write_suite
from tests.waiting import wait_until

pytestmark = pytest.mark.scale
UNSHARE = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
PRICES = {"price_in": 10.0, "price_out": 1000.0, "max_tokens": 100}


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A cluster of two nodes that see an empty folder where all of these tests' files are; its address and caches."""
    if not UNSHARE:
        pytest.skip("this machine allows no mount namespaces, by which a node is kept from seeing files")
    hidden = tmp_path_factory.getbasetemp()
    caches = [Path(f"{hidden}-node{number}") for number in (1, 2)]
    cluster = new_cluster()
    started = []
    try:
        start = f"{sys.executable} -m ray.scripts.scripts start --block --address {cluster.address} --num-cpus 1"
        start += " --object-store-memory {object_store_memory} --dashboard-agent-grpc-port {metrics_agent_port}"
        start += " --metrics-export-port {metrics_export_port} --runtime-env-agent-port {runtime_env_agent_port}"
        start += " --dashboard-agent-listen-port {dashboard_agent_listen_port}"
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        for number, cache in enumerate(caches, 1):
            script = f"mount -t tmpfs none {hidden} && exec {start.format(**node())}"
            environment = {**os.environ, "DSPA_BENCH_CACHE": str(cache)}
            how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
            started.append(subprocess.Popen(["unshare", "-m", "bash", "-c", script], env=environment, cwd="/", **how))
            wait_until(lambda number=number: ray.cluster_resources().get("CPU") == number, *started)
        ray.shutdown()
        yield cluster.address, caches
    finally:
        ray.shutdown()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                for one in psutil.Process(process.pid).children(recursive=True):
                    one.kill()
            process.kill()
            process.wait()
        cluster.shutdown()
        for cache in caches:
            subprocess.run(["rm", "-rf", cache], check=True)


def on_ray(apart, suite: Path, out: Path, *overrides: str):
    where = ["execution.executor=ray", f"execution.address='{apart[0]}'", *overrides]
    progress = NoProgress()
    return run_suite(prepare(suite, out, where), progress)


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_folders) -> Path:
    params = {"input_sae": "early", "output_sae": "late", "percentile": 50.0, "min_support": 1}
    dpo = {"tuning": "lora", "batch_size": 2, "lora_dropout": 0.1}
    return write_suite(
        tmp_path_factory.mktemp("suite"),
        tiny_folders["gemma2"],
        saes={"early": {"path": str(tiny_folders["input"])}, "late": {"path": str(tiny_folders["output"])}},
        variants=[
            {"name": "base", "method": "base"},
            {"name": "dspa", "method": "dspa", "params": params},
            {"name": "dpo", "method": "dpo", "params": dpo},
        ],
        budgets=[8],
    )


def test_a_node_that_does_not_see_the_run_folder_is_refused_before_any_cell(apart, suite, tmp_path):
    with pytest.raises(ValueError, match=r"Ray node \S+ does not see the run folder .*execution.shared_folder=false"):
        on_ray(apart, suite, tmp_path / "run")
    assert not list(tmp_path.glob("run/cells/*"))


def test_without_a_shared_folder_the_results_are_the_local_ones_and_every_file_reached_a_node_once(
    apart, suite, tmp_path
):
    assert run_suite(prepare(suite, tmp_path / "local"), NoProgress()) == {}
    apart_once = "execution.shared_folder=false"
    assert on_ray(apart, suite, tmp_path / "run", apart_once) == {}
    assert outcome(tmp_path / "run") == outcome(tmp_path / "local")
    assert len({state.host for state in cell_states(tmp_path / "run").values()}) == 2
    assert not list((tmp_path / "run" / "cells").glob(".*"))
    contents = [{p.name: p.stat().st_mtime_ns for p in (cache / "ray" / "contents").iterdir()} for cache in apart[1]]
    assert all(contents)
    # What is damaged is made again, from what there is of the cell; base model and SAEs are on the nodes already.
    (tmp_path / "run" / "cells" / "dpo__n8__s0" / "records" / "toy_bench.jsonl").unlink()
    before = (tmp_path / "run" / "cells" / "dpo__n8__s0" / "artifact" / "aligned.json").stat().st_mtime_ns
    assert on_ray(apart, suite, tmp_path / "run", apart_once) == {}
    assert outcome(tmp_path / "run") == outcome(tmp_path / "local")
    assert (tmp_path / "run" / "cells" / "dpo__n8__s0" / "artifact" / "aligned.json").stat().st_mtime_ns == before
    for cache, old in zip(apart[1], contents, strict=True):
        now = {path.name: path.stat().st_mtime_ns for path in (cache / "ray" / "contents").iterdir()}
        assert {name: time for name, time in now.items() if name in old} == old


def test_a_cap_holds_over_nodes_and_no_verdict_is_paid_for_twice(apart, tmp_path, tiny_folders):
    sampled = {"temperatures": 1.0, "max_new_tokens": 6}
    questions = [{"question_id": i, "category": "toys", "turns": [f"w{i} w30", f"w{i}"]} for i in range(6)]
    (tmp_path / "mt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    with serving(lambda question: f"[[{1 + len(question) % 5}]]") as server:
        judge = {"kind": "openai", "base_url": server.url, "model": "judge", "concurrency": 3, **PRICES}
        suite = write_suite(
            tmp_path / "suite",
            tiny_folders["llama"],
            judge=judge,
            benchmarks=[{"name": "mt_bench", "questions": str(tmp_path / "mt.jsonl"), **sampled}],
            variants=[{"name": name, "method": "base"} for name in ("one", "other")],  # both ask the very same
            seeds=2,
            report=None,
        )
        apart_once, out = "execution.shared_folder=false", tmp_path / "run"
        failures = on_ray(
            apart, suite, out, apart_once, "judge.max_cost=0.15"
        )  # about a call at its worst, and ten as they are
        (account,) = read_accounts(out / "judging").values()
        assert account.cost is not None and account.possible is not None
        assert 0 < account.cost + account.possible <= 0.15
        assert failures and all("spending cap of 0.15 reached" in reasons[0] for reasons in failures.values())
        assert on_ray(apart, suite, out, apart_once, "judge.max_cost=2000") == {}
        assert set(server.answered.values()) == {1}, "each question is asked once, on whatever node"
    (account,) = read_accounts(out / "judging").values()
    assert account.answered == len(server.answered)
