"""What alignment and judging cost: the compute table, the bill by stage and operator, the judges' accounts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness import markdown as md
from harness.compute.bill import Bill, OperatorRow
from harness.judging.ledger import Account, read_accounts
from harness.run_folder.plan import BudgetName
from reports.places import shown
from reports.run import Cell, Run
from reports.tables import NAN, Table


class Cost(NamedTuple):
    """The bill of one row of the comparison: means over its cells, peak memory their largest; nan without cells.

    ``flops_source`` says of the executed FLOPs "measured", or of what was made elsewhere "declared" (as the suite has
    them) or "unknown" (they are nan then, not 0); nothing else of such a bill is known. What tuning executed and how
    long it took is not in the fit's figures; 0 for what is not tuned.
    """

    train_params: float
    executed_flops: float
    formula_flops: float
    paper_flops: float
    fit_seconds: float
    peak_bytes: float
    tuning_flops: float
    tuning_seconds: float
    flops_source: str


class Compute(NamedTuple):
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
    tuning_flops: float
    tuning_seconds: float
    peak_bytes: float
    cuda_peak_bytes: float
    triples: float
    epochs: float
    tokens: float
    optimiser_steps: float
    train_params: float
    total_params: float
    train_share: float
    flops_source: str


class Stage(NamedTuple):
    """One stage of the bill, means over seeds, ``peak_bytes`` the largest.

    ``predicted_flops`` is nan without a prediction; ``sampled_steps`` are the kinds of steps that the torch profiler
    saw one of, and ``missed_share`` the percentage of the executed FLOPs in operators that it counts as 0 (nan
    without a sample, or without FLOPs).
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
    missed_share: float


class Operator(NamedTuple):
    """One operator in all steps of one kind; ``share`` is its percentage of its stage's executed FLOPs, nan where these
    are 0. The shares of a stage sum to 100."""

    variant: str
    row: OperatorRow
    share: float


class Judging(NamedTuple):
    """One judge that was asked, and the sums over its calls."""

    judge: str
    account: Account


def mean_cost(cells: Sequence[Cell]) -> Cost:
    """The bill's part of a comparison row."""
    bills, source = _bills(cells), ""
    if bills:
        source = (
            "measured" if bills[0].declared is None else "unknown" if bills[0].declared.flops is None else "declared"
        )
    means = (_mean(bills, key) for key in ("train_params", "executed_flops", "formula_flops", "paper_flops", "seconds"))
    peak = max((bill.peak_bytes for bill in bills), default=NAN)
    tuned = [(0, 0.0) if c.best is None else (c.best.executed_flops, c.best.seconds) for c in cells]
    flops, seconds = (sum(column) / len(tuned) for column in zip(*tuned, strict=True)) if tuned else (NAN, NAN)
    return Cost(*means, peak_bytes=peak, tuning_flops=flops, tuning_seconds=seconds, flops_source=source)


def flops_text(cost: "Cost | Compute") -> str:
    """The executed FLOPs in Markdown, or what is declared in their place, which is named as such."""
    if cost.flops_source == "unknown":
        return "unknown"
    return md.flops(cost.executed_flops) + (" (declared)" if cost.flops_source == "declared" else "")


def compute(run: Run) -> Table[Compute]:
    """One row per variant and budget (budget 0, once, for a variant without triples)."""
    rows = []
    for variant, budget, cells in run.fitted():
        bills = _bills(cells)
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
                total_params=total,
                train_share=100 * cost.train_params / total if total else NAN,
                **{key: _mean(bills, key) for key in ("epochs", "tokens", "optimiser_steps")},
                **cost._asdict(),
            )
        )
    return Table(Compute._fields, rows)


def stages(run: Run) -> Table[Stage]:
    """The bill by stage."""
    means = ("executed_flops", "formula_flops", "seconds", "tokens", "steps", "sampled_steps")
    rows = []
    for variant, budget, cells in run.fitted():
        bills = [cell.bill for cell in cells if cell.bill]
        for name in dict.fromkeys(stage.name for bill in bills for stage in bill.stages):
            found = [stage for bill in bills for stage in bill.stages if stage.name == name]
            missed = [share for bill in bills if (share := _missed(bill.operators, name)) == share]
            rows.append(
                Stage(
                    variant,
                    budget,
                    stage=name,
                    predicted_flops=_predicted(bills, name),
                    peak_bytes=max(stage.peak_bytes for stage in found),
                    missed_share=sum(missed) / len(missed) if missed else NAN,
                    **{key: _mean(found, key) for key in means},
                )
            )
    return Table(Stage._fields, rows)


def operators(run: Run) -> Table[Operator]:
    """Each variant's first cell at its largest budget: operators by stage and kind of step, by falling FLOPs."""
    largest = {variant: cells[0].bill for variant, _, cells in run.fitted()}
    rows = []
    for variant, bill in largest.items():
        totals = {stage.name: stage.executed_flops for stage in (bill.stages if bill else ())}
        for row in bill.operators if bill else ():
            rows.append(Operator(variant, row, 100 * row.flops / (totals[row.stage] or NAN)))
    columns = ["variant", *OperatorRow.model_fields, "share"]
    return Table(columns, rows, lambda found: (found.variant, *dict(found.row).values(), found.share))


def judging(run: Run) -> Table[Judging]:
    """A row for each judge in the ledger of the run folder; none for a run without one."""
    rows = [Judging(shown(judge), account) for judge, account in read_accounts(run.folder / "judging").items()]
    return Table(["judge", *vars(Account())], rows, _judging_cells)


def _bills(cells: Sequence[Cell]) -> list[Bill]:
    """The bills there are. Of what was made elsewhere only the declared FLOPs say what it cost: the rest of its bill is
    that of loading it."""
    loading = ("formula_flops", "seconds", "peak_bytes", "tokens", "optimiser_steps", "train_params", "n_triples")
    found = []
    for bill in (cell.bill for cell in cells if cell.bill is not None):
        if bill.declared is not None:
            flops = NAN if bill.declared.flops is None else bill.declared.flops
            bill = bill.model_copy(update={**dict.fromkeys(loading, NAN), "executed_flops": flops})
        found.append(bill)
    return found


def _judging_cells(row: Judging) -> list[Any]:
    return [row.judge, *(vars(row.account) | {"models": shown(" ".join(sorted(row.account.models)))}).values()]


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


def _missed(operators: Sequence[OperatorRow], stage: str) -> float:
    """Percentage of the stage's FLOPs in operators that the torch profiler counts as 0; nan without FLOPs."""
    rows = [row for row in operators if row.stage == stage]
    missed = sum(row.flops for row in rows if not row.profiler_flops)
    return 100 * missed / (sum(row.flops for row in rows) or NAN)


def _mean(bills: Sequence[Any], key: str) -> float:
    """The mean of one figure; nan without bills, or where one of them has none (no paper figure)."""
    values = [getattr(bill, key) for bill in bills]
    return NAN if not values or None in values else sum(values) / len(values)
