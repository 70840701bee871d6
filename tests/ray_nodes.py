"""For tests on Ray clusters; importing it skips the module that does where Ray is not installed."""

import os

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="needs Ray: pip install 'dspa-bench[ray]'")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
