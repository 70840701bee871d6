"""From a suite file to a filled run folder: load, check, plan, run, resume."""

from harness.experiment.check import Checked, check_suite
from harness.experiment.plan import cell_triples, derive_seed, make_plan
from harness.experiment.run import Prepared, prepare, run_suite
from harness.experiment.suite import Suite, Variant, load_suite

__all__ = [
    "Checked",
    "Prepared",
    "Suite",
    "Variant",
    "cell_triples",
    "check_suite",
    "derive_seed",
    "load_suite",
    "make_plan",
    "prepare",
    "run_suite",
]
