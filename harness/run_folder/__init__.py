"""The folder of a run, typed: the experiment writes it, reports and tests read it. Nothing here needs torch."""

from harness.run_folder.cell import CellFolder, CellState
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import Environment, Plan, PlannedBenchmark, PlannedCell, PlannedTuning, PlannedVariant
from harness.run_folder.training import Curve, TrainingStep
from harness.run_folder.tuning import Best, Trial, TuningFolder

__all__ = [
    "Best",
    "CellFolder",
    "CellState",
    "Curve",
    "Environment",
    "Plan",
    "PlannedBenchmark",
    "PlannedCell",
    "PlannedTuning",
    "PlannedVariant",
    "RunFolder",
    "TrainingStep",
    "Trial",
    "TuningFolder",
]
