"""What alignment and judging cost: the compute table, the bill by stage, the operator sample, the judges' accounts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.judging.ledger import read_accounts
from harness.run_folder.plan import BudgetName
from reports.rows import NAN, Row, Table
from reports.run import Cell, Run


@dataclass(frozen=True)
class Cost(Row):
    """The bill of one row of the comparison: means over its cells, peak memory their largest; nan without cells."""

    train_params: float
    executed_flops: float
    formula_flops: float
    paper_flops: float
    fit_seconds: float
    peak_bytes: float


@dataclass(frozen=True)
class Compute(Row):
    """One variant at one budget (0 without triples), means over seeds, peak memory the largest.

    ``train_share`` is the percentage of the model's parameters that were trained; ``predicted_flops`` what was
    expected before the fit, ``triples`` how many it was given and ``epochs`` how often it went over them, each nan
    where unknown.
    """

    variant: str
    method: str
    budget: BudgetName
    n_seeds: int
    executed_flops: float
    predicted_flops: float
    formula_flops: float
    paper_flops: float
    fit_seconds: float
    peak_bytes: float
    cuda_peak_bytes: float
    triples: float
    epochs: float
    tokens: float
    optimiser_steps: float
    train_params: float
    total_params: float
    train_share: float


@dataclass(frozen=True)
class Stage(Row):
    """One stage of the bill, means over seeds, ``peak_bytes`` the largest.

    ``predicted_flops`` is nan without a prediction; ``sampled_steps`` are those that `operators` counts.
    """

    variant: str
    budget: BudgetName
    stage: str
    executed_flops: float
    predicted_flops: float
    formula_flops: float
    seconds: float
    peak_bytes: int
    tokens: float
    steps: float
    sampled_steps: float


@dataclass(frozen=True)
class Operator(Row):
    """One operator in the profiler's sample of a variant."""

    variant: str
    stage: str
    operator: str
    calls: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Judging(Row):
    """One judge that was asked, with the sums of its `Account`; amounts are nan without prices."""

    judge: str
    requests: int
    reused: int
    calls: int
    answered: int
    useless: int
    refused: int
    lost: int
    unsettled: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    possible: float
    models: str


def mean_cost(cells: Sequence[Cell]) -> Cost:
    """The bill's part of a comparison row."""
    bills = [cell.bill for cell in cells if cell.bill is not None]
    return Cost(
        train_params=_mean(bills, "train_params"),
        executed_flops=_mean(bills, "executed_flops"),
        formula_flops=_mean(bills, "formula_flops"),
        paper_flops=_mean(bills, "paper_flops"),
        fit_seconds=_mean(bills, "seconds"),
        peak_bytes=max((bill.peak_bytes for bill in bills), default=NAN),
    )


def compute(run: Run) -> Table[Compute]:
    """One row per variant and budget (budget 0, once, for a variant without triples)."""
    rows = []
    for variant in run.plan.labels:
        for budget, cells in run.groups(variant):
            bills = [cell.bill for cell in cells if cell.bill is not None]
            cost, total = mean_cost(cells), _mean(bills, "total_params")
            rows.append(
                Compute(
                    variant=variant,
                    method=cells[0].planned.method,
                    budget=budget,
                    n_seeds=len(cells),
                    predicted_flops=_predicted(bills),
                    cuda_peak_bytes=max((bill.cuda_peak_bytes or NAN for bill in bills), default=NAN),
                    triples=_mean(bills, "n_triples"),
                    epochs=_mean(bills, "epochs"),
                    tokens=_mean(bills, "tokens"),
                    optimiser_steps=_mean(bills, "optimiser_steps"),
                    total_params=total,
                    train_share=100 * cost.train_params / total if total else NAN,
                    **cost.cells(),
                )
            )
    return Table.of(Compute, rows)


def stages(run: Run) -> Table[Stage]:
    """The bill by stage."""
    rows = []
    for variant in run.plan.labels:
        for budget, cells in run.groups(variant):
            bills = [cell.bill for cell in cells if cell.bill]
            for name in dict.fromkeys(stage.name for bill in bills for stage in bill.stages):
                found = [stage for bill in bills for stage in bill.stages if stage.name == name]
                means = ("executed_flops", "formula_flops", "seconds", "tokens", "steps", "sampled_steps")
                rows.append(
                    Stage(
                        variant=variant,
                        budget=budget,
                        stage=name,
                        predicted_flops=_predicted(bills, name),
                        peak_bytes=max(stage.peak_bytes for stage in found),
                        **{key: _mean(found, key) for key in means},
                    )
                )
    return Table.of(Stage, rows)


def operators(run: Run) -> Table[Operator]:
    """The profiler's sample from each variant's first cell at its largest budget, by falling FLOPs."""
    rows = []
    for variant in run.plan.labels:
        groups = run.groups(variant)
        bill = groups[-1][1][0].bill if groups else None
        for o in sorted(bill.operators if bill else [], key=lambda row: -row.flops):
            rows.append(Operator(variant, o.stage, o.operator, o.calls, o.flops, o.seconds))
    return Table.of(Operator, rows)


def judging(run: Run) -> Table[Judging] | None:
    """A row for each judge in the ledger of the run folder; None for a run without one."""
    rows = []
    for judge, account in read_accounts(run.folder / "judging").items():
        sums: dict[str, Any] = {key: NAN if value is None else value for key, value in vars(account).items()}
        sums["models"] = " ".join(sorted(account.models))
        rows.append(Judging(judge, **sums))
    return Table.of(Judging, rows) if rows else None


def _predicted(bills: Sequence[Any], stage: str | None = None) -> float:
    """Mean predicted FLOPs of all stages, or of one; nan where a bill has no prediction.

    A prediction without the stage expects nothing there. Under a bill for a budget, training that goes on until it is
    reached is not what was predicted, so there is none.
    """
    totals = []
    for bill in bills:
        if bill.predicted is None or (bill.flops_limit is not None and bill.epochs != 1.0):
            return NAN
        totals.append(sum(bill.predicted.values()) if stage is None else bill.predicted.get(stage, 0))
    return sum(totals) / len(totals) if totals else NAN


def _mean(bills: Sequence[Any], key: str) -> float:
    """The mean of one figure; nan without bills, or where one of them has none (no paper figure)."""
    values = [getattr(bill, key) for bill in bills]
    return NAN if not values or None in values else sum(values) / len(values)
