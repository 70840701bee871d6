"""The predicted bills of a plan, one for each variant and budget: cells that differ in their seed cost the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.data.triples import Budget
from harness.experiment.forecast import Forecaster
from harness.experiment.plan import cell_triples
from harness.experiment.tuning import forecast
from harness.method import MethodConfig
from harness.run_folder.plan import BudgetName, PlannedCell

if TYPE_CHECKING:
    from harness.experiment.run import Prepared


@dataclass(frozen=True)
class TuningBill:
    """The trials of a cell's tuning: at most so many ``fits``, whose ``flops`` are ``exact`` or an estimate; None where
    nothing is predicted. Scoring is not in it."""

    trials: int
    fits: int
    flops: int | None
    exact: bool


@dataclass(frozen=True)
class Group:
    """The cells of one variant (or point of a sweep) at one budget.

    ``left`` are those that are not all there, ``begun`` of them have a folder. ``stages`` are the FLOPs of the fit, cut
    to its bill where that is the budget; None where the method uses no triples or predicts nothing. ``reach`` says how
    far over the data such a bill gets.
    """

    cells: tuple[PlannedCell, ...]
    left: tuple[PlannedCell, ...]
    begun: int
    method: MethodConfig
    triples: Budget | None
    stages: Mapping[str, float] | None
    reach: str
    tuning: TuningBill | None

    @property
    def point(self) -> str:
        return self.cells[0].point

    @property
    def budget(self) -> BudgetName:
        return self.cells[0].budget

    @property
    def uses_triples(self) -> bool:
        return self.cells[0].uses_triples

    @cached_property
    def flops(self) -> float | None:
        """Of the fit."""
        return None if self.stages is None else sum(self.stages.values())


def group_bills(prepared: "Prepared", forecaster: Forecaster) -> list[Group]:
    """All cells of the plan, in its order, with what their fits and tunings are predicted to cost."""
    failures, folder = prepared.failures, prepared.folder
    grouped: dict[tuple[str, BudgetName], list[PlannedCell]] = {}
    for cell in prepared.plan.cells:
        grouped.setdefault((cell.point, cell.budget), []).append(cell)
    found = []
    for cells in grouped.values():
        first = cells[0]
        left = tuple(cell for cell in cells if cell.name in failures)
        method = prepared.suite.method_of(first, folder.path)
        triples, stages, reach, tuning = None, None, "", None
        if first.uses_triples:
            triples = cell_triples(prepared.suite, first, prepared.checked.triples)
            stages, reach = _stages(method, triples, first, forecaster)
            if prepared.suite.tuned(first):
                trials = prepared.suite.variant_of(first).trials
                bill = forecast(prepared.suite, first, folder.path, prepared.checked.triples, forecaster)
                tuning = TuningBill(trials, *bill)
        begun = sum(folder.cell(cell.name).path.exists() for cell in left)
        found.append(Group(tuple(cells), left, begun, method, triples, stages, reach, tuning))
    return found


def _stages(
    method: MethodConfig, triples: Budget, cell: PlannedCell, forecaster: Forecaster
) -> tuple[Mapping[str, float] | None, str]:
    limit = cell.flops_limit
    try:
        forecast = forecaster.of(method, triples, limit)
    except ValueError:  # its fit will fail and say so; the other cells may be worth running
        return None, "less than a triple"
    if forecast.stages is None or forecast.flops is None or limit is None:
        return forecast.stages, ""
    if method.single_pass:
        assert forecast.budget is not None
        return forecast.stages, f"{len(forecast.budget.triples)} of {len(triples.triples)} triples"
    share = limit / forecast.flops
    return {stage: flops * share for stage, flops in forecast.stages.items()}, f"{share:.3g} x its epochs"
