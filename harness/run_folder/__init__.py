"""The folder of a run, typed: the experiment writes it, reports and tests read it. Nothing here needs torch."""

from harness.run_folder.layout import CellFolder, CellState, RunFolder
from harness.run_folder.plan import Environment, Plan, PlannedBenchmark, PlannedCell, PlannedVariant

__all__ = [
    "CellFolder",
    "CellState",
    "Environment",
    "Plan",
    "PlannedBenchmark",
    "PlannedCell",
    "PlannedVariant",
    "RunFolder",
]
