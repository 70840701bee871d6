"""What installed packages add to the program, by entry points; the harness itself knows none of it by name.

``dspa_bench.plugins``   modules that register methods, benchmarks and judges
``dspa_bench.commands``  Typer apps whose commands join the program's own; importing them loads nothing heavy
``dspa_bench.reports``   functions (run folder) -> path of the report, called when a run ends
``dspa_bench.truths``    functions (identity of a base model) -> GroundTruth, or None for a base they do not know
"""

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

PLUGINS, COMMANDS = "dspa_bench.plugins", "dspa_bench.commands"
REPORTS, TRUTHS = "dspa_bench.reports", "dspa_bench.truths"


def declared(group: str) -> list[EntryPoint]:
    """The entry points of ``group``, by name; ValueError when there is none, which means nothing is installed."""
    found = sorted(entry_points(group=group), key=lambda entry: entry.name)
    if not found:
        raise ValueError(f"no installed package has entry points {group!r}; in a checkout run: pip install -e .")
    return found


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every plugin module once, which fills the registries; returns their names.

    The harness's own judges are registered with them.
    """
    modules = sorted({entry.value for entry in declared(PLUGINS)})
    for module in (*modules, "harness.judging.endpoint", "harness.judging.local", "harness.judging.reward.judge"):
        import_module(module)
    return tuple(modules)
