"""AlpacaEval's package with one of its annotators or one of our judges; nothing is written outside the folder given.

`alpaca_eval.evaluate` gets both outputs as lists (its own loaders need the hub) and an annotator class of ours; it
merges, annotates, computes the metrics and writes annotations.json and leaderboard.csv. Length-controlled win rates are
its own regression on local inputs (length_control.py).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.evaluators.alpaca_eval.annotator import PackageAnnotator, absent, text_of
from harness.evaluators.alpaca_eval.length_control import LengthControl, UnavailableError
from harness.judging import Judge
from harness.judging.verdicts import Journal
from harness.quiet import silenced

if TYPE_CHECKING:
    import pandas as pd

ANSWERS = "annotator_answers.jsonl"
"""What a package's annotator answered, kept in the folder so that nothing is asked twice."""


@dataclass(frozen=True)
class Annotation:
    """The preference for one instruction: 1 = the reference is better, 2 = the model is.

    ``preference`` is None exactly when ``error`` is set. ``raw`` is the judge's text (for both positions where it was
    asked in both), and empty where the outputs are equal. ``length_controlled`` is the preference that is predicted at
    equal lengths, also in 1..2; None where there is no preference, or no length control.
    """

    instruction: str
    reference: str
    output: str
    preference: float | None
    error: str | None
    raw: tuple[str, ...]
    length_controlled: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Annotations in the order of the outputs, and the package's leaderboard row (win_rate, n_total, ...).

    ``no_length_control`` says why the annotations have no length-controlled preference although it was asked for.
    """

    annotations: list[Annotation]
    leaderboard: dict[str, Any]
    no_length_control: str | None = None


def evaluate(
    outputs: Sequence[dict[str, str]],
    references: Sequence[dict[str, str]],
    by: Judge | PackageAnnotator,
    *,
    folder: Path | None,
    length_control: LengthControl | None = None,
) -> Evaluation:
    """Compare ``outputs`` with ``references`` (instruction, output, generator; same order) by judge or annotator.

    Our judges see every pair in both positions and the preference is the mean, so that a liking for a position
    cancels. The package's annotators see one position, drawn by the package's seed for each instruction. An answer
    equal to the reference is a tie without being judged, as in the package.
    """
    metric = _Metric(length_control)
    if isinstance(by, PackageAnnotator):
        journal = None if folder is None else Journal(folder / ANSWERS)
        settings = {"Annotator": package().ConfiguredAnnotator, "annotator": by, "journal": journal}
    else:
        settings = {"Annotator": package().JudgeAnnotator, "judge": by}
    with silenced(), warnings.catch_warnings(action="ignore", category=FutureWarning):
        import alpaca_eval

        of_package: Any = alpaca_eval.evaluate  # its annotation leaves out what it returns
        table, annotated = of_package(
            model_outputs=list(outputs),
            reference_outputs=list(references),
            # Only a name here; a string would become a subfolder.
            annotators_config=Path(by.name if isinstance(by, PackageAnnotator) else by.label),
            # Matched by position: repeated instructions would be crossed with each other.
            annotation_kwargs={"is_ordered": True},
            output_path=folder,
            fn_metric=metric,
            sort_by="win_rate",
            precomputed_leaderboard=None,
            is_cache_leaderboard=False,
            is_return_instead_of_print=True,
            **settings,
        )
    assert [row["instruction"] for row in annotated] == [row["instruction"] for row in outputs]
    annotations = [_annotation(row) for row in annotated]
    return Evaluation(annotations, table.iloc[0].to_dict(), metric.unavailable)


class _Metric:
    """The package's own figures for leaderboard.csv; predictions at equal lengths are added to the annotations."""

    def __init__(self, length_control: LengthControl | None) -> None:
        self._length_control = length_control
        self.unavailable: str | None = None

    def __call__(self, annotations: list[dict[str, Any]]) -> dict[str, float]:
        import pandas as pd

        # The package needs numbers even where every verdict failed (None in all rows).
        table = pd.DataFrame.from_records(annotations)
        table["preference"] = table["preference"].astype(float)
        figures = win_rate(table)
        if self._length_control is not None:
            try:
                predicted = self._length_control.predict(table)
            except UnavailableError as problem:
                self.unavailable = str(problem)
                return figures
            kept = [None if math.isnan(p) else q for p, q in zip(table["preference"], predicted, strict=True)]
            for row, prediction in zip(annotations, kept, strict=True):
                row["glm_preference"] = prediction
            figures |= length_controlled_figures([p for p in kept if p is not None])
        return figures


def package() -> ModuleType:
    """The module of our annotator classes, with the package's warnings and log lines hidden while it is imported."""
    with silenced(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
        from harness.evaluators.alpaca_eval import package
    return package


def win_rate(table: "pd.DataFrame") -> dict[str, float]:
    """The package's win rate, standard error, counts and discrete win rate; preferences are floats or nan."""
    package()
    from alpaca_eval.metrics import get_winrate

    return get_winrate(table)


def length_controlled_figures(predictions: Sequence[float]) -> dict[str, float]:
    """Mean and standard error of predicted preferences (0..1) in percent, under the package's names.

    The package also averages over instructions whose verdict failed; here they are left out and counted as failures.
    """
    import numpy as np
    from scipy.stats import sem

    values = [100 * value for value in predictions]
    return {"length_controlled_winrate": float(np.mean(values)), "lc_standard_error": float(sem(values))}


def _annotation(row: dict[str, Any]) -> Annotation:
    completion = row.get("preference_raw_completion")
    if isinstance(completion, dict) and "raw" in completion:
        error, texts = completion["error"], tuple(completion["raw"])
    else:
        error, texts = None, () if absent(completion) else (text_of(completion),)
    predicted = row.get("glm_preference")
    return Annotation(
        instruction=row["instruction"],
        reference=row["output_1"],
        output=row["output_2"],
        preference=None if error is not None else float(row["preference"]),
        error=error,
        raw=texts,
        length_controlled=None if predicted is None else 1 + predicted,
    )
