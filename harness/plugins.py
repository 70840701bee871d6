"""Finds methods, benchmarks and judges: packages that declare the entry point group ``dspa_bench.plugins``."""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

GROUP = "dspa_bench.plugins"


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every plugin module once, which fills the registries; returns their names.

    The harness's own judges are registered with them.
    """
    modules = sorted({entry.value for entry in entry_points(group=GROUP)})
    if not modules:
        raise ValueError(f"no plugins found under entry point group {GROUP!r}; install the project (pip install -e .)")
    for module in (*modules, "harness.judging.endpoint", "harness.judging.local", "harness.judging.reward.judge"):
        import_module(module)
    return tuple(modules)
