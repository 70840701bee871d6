"""For tests on Ray clusters; importing it skips the module that does where Ray is not installed."""

import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="needs Ray: pip install 'dspa-bench[ray]'")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def node(cpus: int = 1) -> dict[str, Any]:
    """Settings of a new node; its ports are chosen here, because Ray waits for its own choice for seconds only."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in PORTS]
        for one in bound:
            one.bind(("", 0))
        ports = [one.getsockname()[1] for one in bound]
    return {"num_cpus": cpus, "object_store_memory": 80 * 2**20, **dict(zip(PORTS, ports, strict=True))}


def new_cluster() -> Any:
    """A cluster whose head does no cells, as where a run is started from a login node: any other node can be killed."""
    return Cluster(initialize_head=True, head_node_args={**node(0), "include_dashboard": False})
