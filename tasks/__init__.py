"""What models are evaluated on: one benchmark a module, and the sandbox that needs no download.

pyproject.toml names the modules that register benchmarks and judges; nothing is imported here, so that tasks.commands
loads without torch.
"""

from pathlib import Path

SUITES = Path(__file__).with_name("suites")
"""The suites that come with the package: `dspa-bench run NAME`."""
