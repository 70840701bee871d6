"""What tuning found: per variant and budget who won and how flat the optimum is, and every trial."""

import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from harness.run_folder import Best, Trial
from harness.run_folder.plan import BudgetName
from reports.run import Cell, Run
from reports.tables import NAN, Table

NEAR = 0.9
"""A trial is near the best one when it has this share of its improvement on the base model."""


class Won(NamedTuple):
    """The winner of one cell: its seed, the trial and its values; ``fallback``: none passed the floor."""

    seed: int
    trial: int
    params: dict[str, Any]
    fallback: bool


class Tuned(NamedTuple):
    """One variant at one budget: means over its cells, on the validation parts.

    ``trials`` and ``fits`` (those of its trials' own) are per cell. Scores are those of the unaligned model, of the
    variant's own values, of the winner and of the median trial; ``near`` is the percentage of trials that have 90 % of
    the best improvement on the base, nan where none improves on it. ``below_floor`` and ``failed`` count trials of all
    cells, which are ``all_trials``.
    """

    variant: str
    budget: BudgetName
    n_seeds: int
    trials: float
    fits: float
    base_score: float
    own_score: float
    best_score: float
    median_score: float
    near: float
    all_trials: int
    below_floor: int
    failed: int
    executed_flops: float
    seconds: float
    winners: tuple[Won, ...]


class TrialRow(NamedTuple):
    """One trial of one cell."""

    variant: str
    budget: BudgetName
    seed: int
    trial: Trial
    won: bool


def tuned(run: Run) -> Table[Tuned]:
    """A row for each variant and budget with tuned cells."""
    rows = [_row(variant, budget, found) for variant, budget, found in _tuned_cells(run)]
    return Table(Tuned._fields, rows, lambda row: (*row[:-1], json.dumps([won._asdict() for won in row.winners])))


def trials(run: Run) -> Table[TrialRow]:
    """Every trial."""
    rows = [
        TrialRow(variant, budget, cell.planned.seed, trial, trial.trial == best.winner)
        for variant, budget, found in _tuned_cells(run)
        for cell, best in found
        for trial in cell.trials
    ]
    columns = [*TrialRow._fields[:3], *Trial.model_fields, "won"]

    def cells(row: TrialRow) -> list[Any]:
        fields = row.trial.model_dump() | {"params": json.dumps(row.trial.params)}
        return [*row[:3], *fields.values(), row.won]

    return Table(columns, rows, cells)


def _tuned_cells(run: Run) -> list[tuple[str, BudgetName, list[tuple[Cell, Best]]]]:
    found = [(v, budget, [(c, c.best) for c in cells if c.best is not None]) for v, budget, cells in run.fitted()]
    return [entry for entry in found if entry[2]]


def _row(variant: str, budget: BudgetName, found: Sequence[tuple[Cell, Best]]) -> Tuned:
    tried = [trial for cell, _ in found for trial in cell.trials]

    def mean(values: Sequence[float]) -> float:
        known = [value for value in values if value == value]
        return sum(known) / len(known) if known else NAN

    def score(trial: Trial) -> float:
        return NAN if trial.score is None else trial.score

    def median(cell: Cell) -> float:
        scores = [trial.score for trial in cell.trials if trial.score is not None]
        return statistics.median(scores) if scores else NAN

    def near(cell: Cell, best: Best) -> float:
        wanted = best.base_score + NEAR * (score(cell.trials[best.winner - 1]) - best.base_score)
        if not wanted > best.base_score:
            return NAN
        return 100 * sum(trial.passed and score(trial) >= wanted for trial in cell.trials) / len(cell.trials)

    return Tuned(
        variant,
        budget,
        n_seeds=len(found),
        trials=mean([len(cell.trials) for cell, _ in found]),
        fits=mean([sum(trial.shares is None for trial in cell.trials) for cell, _ in found]),
        base_score=mean([best.base_score for _, best in found]),
        own_score=mean([score(cell.trials[0]) for cell, _ in found]),
        best_score=mean([score(cell.trials[best.winner - 1]) for cell, best in found]),
        median_score=mean([median(cell) for cell, _ in found]),
        near=mean([near(cell, best) for cell, best in found]),
        all_trials=len(tried),
        below_floor=sum(trial.error is None and not trial.passed for trial in tried),
        failed=sum(trial.error is not None for trial in tried),
        executed_flops=mean([best.executed_flops for _, best in found]),
        seconds=mean([best.seconds for _, best in found]),
        winners=tuple(Won(cell.planned.seed, best.winner, best.params, best.fallback) for cell, best in found),
    )
