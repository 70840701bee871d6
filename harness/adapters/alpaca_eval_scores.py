"""Scores of AlpacaEval's annotation files by the package's own metrics."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.adapters.alpaca_eval import length_controlled_figures, win_rate
from harness.adapters.alpaca_eval_lc import LengthControl, UnavailableError, published
from harness.scores import Score

if TYPE_CHECKING:
    import pandas as pd


def annotation_scores(annotations: Sequence[dict[str, Any]], data: Path) -> tuple[list[Score], list[str]]:
    """Scores of every model, and what is to be said about its length-controlled win rate, in a sentence each.

    ``annotations`` are those of `load_annotations`; ``data`` is the folder with the inputs of the regression. In
    percent, but for the average length, which is in characters and rounded down, as in the package's leaderboards. A
    verdict that failed counts as a failure of every metric but that. Raises ValueError for two annotators of one model.
    """
    import pandas as pd

    scores, notes = [], []
    for model in dict.fromkeys(row["generator_2"] for row in annotations):
        of_model = pd.DataFrame([row for row in annotations if row["generator_2"] == model])
        annotators = list(dict.fromkeys(of_model["annotator"]))
        if len(annotators) > 1:
            raise ValueError(
                f"{model} has verdicts of several annotators ({', '.join(annotators)}), whose mean would say nothing; "
                "give a file for each"
            )
        figures = win_rate(of_model)
        predicted, note = _length_controlled(of_model, figures["win_rate"], data)
        notes.append(f"{model}: {note}")
        scores += _scores(model, of_model, figures, predicted)
    return scores, notes


def _scores(
    model: str, table: "pd.DataFrame", figures: dict[str, float], predicted: Sequence[float] | None
) -> list[Score]:
    n = int(figures["n_total"])
    failures = len(table) - n
    names = ("win_rate", "standard_error", "discrete_win_rate")
    scores = [Score(model, name, _number(figures[name]), n, failures) for name in names]
    if predicted is not None:
        judged = [p for p, preference in zip(predicted, table["preference"], strict=True) if not math.isnan(preference)]
        controlled = length_controlled_figures(judged)
        scores.append(Score(model, "lc_win_rate", controlled["length_controlled_winrate"], n, failures))
        scores.append(Score(model, "lc_standard_error", controlled["lc_standard_error"], n, failures))
    length = int(sum(map(len, table["output_2"])) / len(table))
    return [*scores, Score(model, "avg_length", length, len(table), 0)]


def _length_controlled(table: "pd.DataFrame", rate: float, data: Path) -> tuple[list[float] | None, str]:
    """Predictions at equal lengths, or None; and how they were made, or why there are none."""
    try:
        control = LengthControl.load(data)
        if control.gamed is None:
            found = published(data, table, rate)
            if found is not None:
                return found, "length-controlled by the published weights of this model"
        return control.predict(table), f"length-controlled by AlpacaEval's regression, {control.form}"
    except UnavailableError as problem:
        return None, f"no length-controlled win rate: {problem}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
