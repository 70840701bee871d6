"""AlpacaEval's package with one of its annotators or one of our judges; nothing is written outside the folder given.

`alpaca_eval.evaluate` gets both outputs as lists (its own loaders need the hub) and an annotator class of ours; it
merges, annotates, computes the metrics and writes annotations.json and leaderboard.csv. Our classes descend from the
one of the package that, unlike its usual one, keeps no cache of annotations in site-packages. Length-controlled win
rates are its own regression on local inputs (length_control.py).

A row without a preference has {"raw": texts, "error": reason} as its raw completion, and so has every row of a judge.
Importing this imports the package, which takes a second.
"""

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import sem

from harness.data.triples import conversation
from harness.evaluators.alpaca_eval.annotator import KeptAnswers, PackageAnnotator
from harness.evaluators.alpaca_eval.length_control import LengthControl, UnavailableError
from harness.evaluators.alpaca_eval.spending import Spending
from harness.judging import Comparison, Judge
from harness.judging.verdicts import Journal
from harness.quiet import silenced

with silenced(), warnings.catch_warnings():  # it sets up logging, too
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    import alpaca_eval
    from alpaca_eval.annotators.pairwise_evaluator import PairwiseAnnotatorLocal, SinglePairwiseAnnotator
    from alpaca_eval.metrics import get_winrate

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
    spending: Spending | None = None,
) -> Evaluation:
    """Compare ``outputs`` with ``references`` (instruction, output, generator; same order) by judge or annotator.

    Our judges see every pair in both positions and the preference is the mean, so that a liking for a position
    cancels. The package's annotators see one position, drawn by the package's seed for each instruction. An answer
    equal to the reference is a tie without being judged, as in the package. ``spending`` is told of what an annotator
    asks, and may forbid it.
    """
    metric = _Metric(length_control)
    of_package: Any = alpaca_eval.evaluate  # its annotation leaves out what it returns
    with silenced(), warnings.catch_warnings(action="ignore", category=FutureWarning):
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
            Annotator=_Annotators,
            by=by,
            journal=None if folder is None else Journal(folder / ANSWERS),
            spending=spending,
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
        # The package needs numbers even where every verdict failed (None in all rows).
        table = pd.DataFrame.from_records(annotations)
        table["preference"] = table["preference"].astype(float)
        figures = get_winrate(table)
        if self._length_control is not None:
            try:
                predicted = self._length_control.predict(table)
            except UnavailableError as problem:
                self.unavailable = str(problem)
                return figures
            kept = [None if math.isnan(p) else q for p, q in zip(table["preference"], predicted, strict=True)]
            for row, prediction in zip(annotations, kept, strict=True):
                row["glm_preference"] = prediction
            controlled = length_controlled_figures([p for p in kept if p is not None])
            figures |= {f"{name}{self._length_control.suffix}": value for name, value in controlled.items()}
        return figures


def length_controlled_figures(predictions: Sequence[float]) -> dict[str, float]:
    """Mean and standard error of predicted preferences (0..1) in percent, under the package's names.

    The package also averages over instructions whose verdict failed; here they are left out and counted as failures.
    """
    values = [100 * value for value in predictions]
    return {"length_controlled_winrate": float(np.mean(values)), "lc_standard_error": float(sem(values))}


def _annotation(row: dict[str, Any]) -> Annotation:
    completion = row.get("preference_raw_completion")
    if isinstance(completion, dict) and "raw" in completion:
        error, texts = completion["error"], tuple(completion["raw"])
    else:
        error, texts = None, tuple(_said(completion))
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


class _Annotators(PairwiseAnnotatorLocal):
    """A judge of ours or a configuration of the package, whose answers are kept in ``journal``."""

    def __init__(
        self, *, by: Judge | PackageAnnotator, journal: Journal | None, spending: Spending | None, **kwargs: Any
    ) -> None:
        self._by, self._journal, self._spending = by, journal, spending
        super().__init__(**kwargs)

    def _initialize_annotators(self, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(self._by, PackageAnnotator):
            return {self._by.label: _BothPositions(self._by)}
        common = {"seed": self.seed, "base_dir": self._by.base_dir, "journal": self._journal}
        common |= {"spending": self._spending}
        common |= {"annotation_column": self.annotation_key, "completion_column": self.completion_key}
        configs = deepcopy(dict(self._by.configs)).items()  # the package writes into them
        return {name: _KeptAnnotator(name=name, **common, **config, **kwargs) for name, config in configs}


@dataclass
class _BothPositions:
    """In the place of the package's SingleAnnotator: rows of output_1, output_2 in, preferences out."""

    judge: Judge
    processors: tuple = ()

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        pairs = zip(rows["instruction"], rows["output_1"], rows["output_2"], strict=True)
        straight = [Comparison.of(conversation(text), first, second) for text, first, second in pairs]
        verdicts = self.judge.compare(straight + [pair.swapped for pair in straight])
        preferences, completions = [], []
        for one, other in zip(verdicts[: len(straight)], verdicts[len(straight) :], strict=True):
            first, second = (math.nan if v.value is None else v.value for v in (one, other))
            preferences.append((first + 3 - second) / 2)
            reasons = dict.fromkeys(v.error for v in (one, other) if v.error is not None)
            completions.append({"raw": [one.raw, other.raw], "error": "; ".join(reasons) or None})
        return rows.assign(preference=preferences, preference_raw_completion=completions)


class _KeptAnnotator(SinglePairwiseAnnotator):
    """The package's annotator; answers are kept, and rows whose answer cannot be read stay, with the reason."""

    def __init__(self, *, name: str, journal: Journal | None, spending: Spending | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        asks = self.fn_completions
        self.fn_completions = KeptAnswers(asks, name, journal, self._readable, self.completion_key, spending)

    def _readable(self, completion: Any) -> bool:
        found, _ = self._parse_completions([completion])
        return not any(_absent(value) for value in found)

    def _make_prompts(self, df_to_annotate: pd.DataFrame, prompt_template: str | None = None) -> Any:
        prompts, table = super()._make_prompts(df_to_annotate, prompt_template)
        self._prompts = [prompt for prompt in prompts for _ in range(self.batch_size)]
        return prompts, table

    def _postprocess(self, df_annotated: pd.DataFrame) -> pd.DataFrame:
        # Parsers say 0 for a tie, which the package would refuse.
        values = df_annotated[self.annotation_column].astype(float).replace({0.0: 1.5})
        values = values.where(values.between(1, 2))
        rows = zip(values, df_annotated[self.completion_column], self._prompts, strict=True)
        completions = [self._failure(said, prompt) if _absent(value) else said for value, said, prompt in rows]
        table = df_annotated.assign(**{self.annotation_column: values, self.completion_column: completions})
        for processor in reversed(self.processors):  # as the package does, which drops rows without a preference
            table = processor.postprocess(table)
        return table

    def _failure(self, completion: Any, prompt: str) -> dict[str, Any]:
        reason = self.fn_completions.errors.get(prompt, "the annotator's answer cannot be read")
        return {"raw": _said(completion), "error": reason}


def _said(completion: Any) -> list[str]:
    """What an annotator wrote, if anything; with probabilities of tokens it comes as a whole choice."""
    text = completion.get("text", completion) if isinstance(completion, dict) else completion
    return [] if _absent(text) or text == "" else [str(text)]


def _absent(value: Any) -> bool:
    """Whether ``value`` is what the package has for nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))
