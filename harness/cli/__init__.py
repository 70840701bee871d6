"""The command line. It is the composition root: the one place in harness/ that may name tasks and reports.

Modules that need torch are imported inside the commands, so that ``dspa-bench --help`` answers at once.
"""

from harness.cli.app import main

__all__ = ["main"]
