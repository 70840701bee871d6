"""Cells of other runs that this one would make in the same way: they are copied instead of made again."""

from collections.abc import Sequence
from pathlib import Path

from harness.experiment.plan import Identity, differences
from harness.files import read_sealed
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import Plan, PlannedCell


class Donor:
    """The run in ``path``, whose cells may serve the run that ``identity`` is of.

    A cell is the same when its name (the fit's seed is derived from it), its variant, what both suites start from
    (seed, base, SAEs, triples, judges) and every benchmark of this run are: by content, as when a run is resumed.
    Raises ValueError for a folder that is no run and for one that starts from something else.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.folder = RunFolder.open(path)
        there = read_sealed(path / "identity.json") or {}
        shared = [name for name in identity if name.startswith("benchmarks.") or name == "second_judge"]
        here = {"suite": identity["suite"], **{name: identity[name] for name in shared}}
        found = differences({name: there.get(name, "missing") for name in here}, here)
        found = [line for line in found if not line.startswith("suite.name:")]
        if found:
            shown = "".join(f"\n  {line}" for line in found[:10])
            raise ValueError(f"--reuse {path}: none of its cells would be the same here; these differ:{shown}")
        self._points = {name for name in there if name in identity and there[name] == identity[name]}
        self._names = {cell.name for cell in self.folder.plan.cells}

    def gives(self, cell: PlannedCell, plan: Plan) -> bool:
        """Whether ``cell`` of ``plan`` is there, made in the same way, and complete."""
        if cell.name not in self._names or f"variants.{cell.point}" not in self._points:
            return False
        twice = [benchmark.name for benchmark in plan.benchmarks if benchmark.judged_twice]
        return not self.folder.cell(cell.name).failures([one.name for one in plan.benchmarks], twice)


def reusable(donors: Sequence[Donor], run: RunFolder, plan: Plan) -> dict[str, Donor]:
    """The cells of ``plan`` that ``run`` has not begun and a donor gives, each with the first that does."""
    found = {}
    for cell in plan.cells:
        donor = next((one for one in donors if one.gives(cell, plan)), None)
        if donor is not None and not run.cell(cell.name).path.exists():
            found[cell.name] = donor
    return found
