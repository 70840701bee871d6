"""Scores of judgments that exist already, one line each: model, metric, value, n, failures."""

import csv
import sys
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import TextIO


@dataclass(frozen=True)
class Score:
    """One metric of one model over ``n`` verdicts (``value`` is None without any); ``failures`` gave no verdict."""

    model: str
    metric: str
    value: float | None
    n: int
    failures: int


def write_scores(scores: Iterable[Score], file: TextIO | None = None) -> None:
    """CSV with a header to ``file`` (standard output); 15 digits, and an empty value where there is none."""
    writer = csv.writer(file or sys.stdout, lineterminator="\n")
    writer.writerow(field.name for field in fields(Score))
    for score in scores:
        writer.writerow(f"{v:.15g}" if isinstance(v, float) else v for v in astuple(score))
