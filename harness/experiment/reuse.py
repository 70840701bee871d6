"""Cells of other runs that this one would make in the same way: they are copied instead of made again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.experiment.plan import Identity, differences
from harness.files import read_sealed
from harness.run_folder.layout import RunFolder
from harness.run_folder.plan import Plan, PlannedCell


class Donor:
    """The run in ``path``, whose cells may serve the run that ``identity`` is of.

    A cell is the same when its name (the fit's seed is derived from it), its variant, what both suites start from
    (seed, base, triples, judges), the SAEs that it names and the benchmarks of both are: by content, as when a run is
    resumed. Of benchmarks that only this run has the cells are then begun. Raises ValueError for a folder that is no
    run and for one that starts from something else.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.folder = RunFolder.open(path)
        there = identity_of(path)
        measures = [name for name in identity if name.startswith("benchmarks.") or name == "second_judge"]
        shared = {name: there[name] for name in measures if name in there}
        here = {"suite": start_of(identity), **{name: identity[name] for name in shared}}
        found = differences({**shared, "suite": start_of(there)}, here)
        if found:
            shown = "".join(f"\n  {line}" for line in found[:10])
            raise ValueError(f"--reuse {path}: none of its cells would be the same here; these differ:{shown}")
        self._points = {name for name in there if name in identity and same_made(name, there, identity)}
        self._names = {cell.name for cell in self.folder.plan.cells}
        self._benchmarks = {benchmark.name: benchmark for benchmark in self.folder.plan.benchmarks}
        self.whole = len(shared) == len(measures)
        """Whether its cells have all that this run's are to have."""

    def gives(self, cell: PlannedCell, plan: Plan) -> bool:
        """Whether ``cell`` of ``plan`` is there, made in the same way, and complete in what both runs measure."""
        if cell.name not in self._names or f"variants.{cell.point}" not in self._points:
            return False
        both = [benchmark for benchmark in plan.benchmarks if benchmark.name in self._benchmarks]
        twice = [one.name for one in both if one.judged_twice and self._benchmarks[one.name].judged_twice]
        return not self.folder.cell(cell.name).failures([one.name for one in both], twice)


def identity_of(run: Path) -> Identity:
    """identity.json of a run; ValueError where it is missing or damaged."""
    found = read_sealed(run / "identity.json")
    if found is None:
        raise ValueError(f"{str(run)!r} has no identity.json, which says what its cells depend on; rerun its suite")
    return found


def start_of(identity: Identity) -> Identity:
    """What all cells of a suite start from; which SAEs matters to those variants alone that name them."""
    return {key: value for key, value in identity["suite"].items() if key not in ("name", "saes")}


def same_made(unit: str, there: Identity, here: Identity) -> bool:
    """Whether a variant, or a point of a sweep, is the same in both, the SAEs that it calls by name included."""
    if there[unit] != here[unit]:
        return False
    saes, others = there["suite"]["saes"], here["suite"]["saes"]
    named = set(_texts(here[unit])) & (saes.keys() | others.keys())
    return all(saes.get(name) == others.get(name) for name in named)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def reusable(donors: Sequence[Donor], run: RunFolder, plan: Plan) -> dict[str, Donor]:
    """The cells of ``plan`` that ``run`` has not begun and a donor gives, each with the first that does."""
    found = {}
    for cell in plan.cells:
        donor = next((one for one in donors if one.gives(cell, plan)), None)
        if donor is not None and not run.cell(cell.name).path.exists():
            found[cell.name] = donor
    return found
