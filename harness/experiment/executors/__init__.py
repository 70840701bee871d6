"""Who runs the cells: this machine's processes, or the nodes of a Ray cluster."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiment.executors.local import run_local
from harness.experiment.executors.worker import Progress
from harness.plugins import need

if TYPE_CHECKING:  # a node's process sets its environment before it loads anything heavy
    from harness.experiment.sections import ExecutionSection
    from harness.experiment.suite import Suite

__all__ = ["Progress", "check_executor", "run_cells"]


def check_executor(suite: "Suite") -> None:
    """Raise ValueError where what is to run the cells is not there; a connection to a Ray cluster stays open."""
    if suite.file.execution.executor == "ray":
        need("ray", "executor: ray")
        from harness.experiment.executors.ray import check_cluster

        check_cluster(suite)


def run_cells(folder: Path, cells: Collection[str], how: "ExecutionSection", progress: Progress) -> None:
    """Run ``cells`` of the run in ``folder``; a cell that fails leaves its reason in the folder.

    ValueError, before any of them is begun, where the machines that are to run them cannot.
    """
    folder = folder.absolute()  # lm-eval changes the working directory while it reads tasks
    if how.executor == "ray":
        from harness.experiment.executors.ray import run_ray

        run_ray(folder, cells, how, progress)
    else:
        settings = {"workers": how.workers, "threads": how.threads, "hung_minutes": how.hung_minutes}
        run_local(folder, cells, **settings, progress=progress)
