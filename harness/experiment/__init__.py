"""From a suite file to a filled run folder: load, check, plan, run, resume."""

from harness.experiment.check import Checked, check_suite
from harness.experiment.plan import Cell, cell_triples, derive_seed, plan
from harness.experiment.run import Prepared, prepare, run_suite
from harness.experiment.store import CellFolder, RunFolder
from harness.experiment.suite import Suite, Variant, load_suite

__all__ = [
    "Cell",
    "CellFolder",
    "Checked",
    "Prepared",
    "RunFolder",
    "Suite",
    "Variant",
    "cell_triples",
    "check_suite",
    "derive_seed",
    "load_suite",
    "plan",
    "prepare",
    "run_suite",
]
