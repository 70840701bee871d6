"""``dspa-bench score agreement``: how far two judges' files agree."""

import csv
import sys
from pathlib import Path

from harness.agreement import Pair, agreement
from harness.measure.rescoring import match

EVERY = "all"
"""The name of all models together."""


def score_agreement_command(first: Path, second: Path) -> None:
    """Print the figures, for each model and (of several) for all; ValueError for files that do not go together."""
    matched = match(first, second)
    groups: dict[str, list[Pair]] = dict(matched.pairs)
    if len(groups) > 1:
        groups[EVERY] = [pair for pairs in matched.pairs.values() for pair in pairs]
    failures = matched.failed | {EVERY: sum(matched.failed.values())}
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["model", "metric", "value", "low", "high", "n", "failures"])
    for model, pairs in groups.items():
        if not pairs:
            writer.writerow([model, "", "", "", "", 0, failures[model]])
        for figure in agreement(pairs, matched.kind) if pairs else ():
            numbers = ("" if x != x else f"{x:.15g}" for x in (figure.value, figure.low, figure.high))
            writer.writerow([model, figure.statistic, *numbers, figure.n, failures[model]])
    if any(matched.alone):
        print(f"judged in one file only, and not in these figures: {matched.alone[0]} answers in {first}, "
              f"{matched.alone[1]} in {second}", file=sys.stderr)  # fmt: skip
