"""AlpacaEval's package with one of our judges as its annotator; nothing is written outside the folder given.

`alpaca_eval.evaluate` gets both outputs as lists (its own loaders need the hub) and an annotator class of
ours; it merges, annotates, computes the win rate and writes annotations.json and leaderboard.csv.
Length-controlled win rates are not computed: the package's model for them needs a difficulty of each
instruction, which it downloads from the hub and which exists for its own 805 instructions only.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.adapters.quiet import quiet
from harness.judges import Comparison, Judge, Verdict
from harness.preferences import conversation

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Annotation:
    """The judge's preference for one instruction: 1 = the reference is better, 2 = the model is.

    ``preference`` is None exactly when ``error`` is set. ``raw`` is the judge's text for both positions, and
    empty where the outputs are equal.
    """

    instruction: str
    reference: str
    output: str
    preference: float | None
    error: str | None
    raw: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """Annotations in the order of the outputs, and the package's leaderboard row (win_rate, n_total, ...)."""

    annotations: list[Annotation]
    leaderboard: dict[str, Any]


def evaluate(
    outputs: Sequence[dict[str, str]],
    references: Sequence[dict[str, str]],
    judge: Judge,
    *,
    folder: Path | None,
) -> Evaluation:
    """Compare ``outputs`` with ``references`` (instruction, output, generator; same order) by ``judge``.

    Every pair is judged in both positions and the preference is the mean, so that a liking for a position
    cancels. An answer equal to the reference is a tie without being judged, as in the package.
    """
    package, annotator = _package()
    with quiet():
        table, annotated = package.evaluate(
            model_outputs=list(outputs),
            reference_outputs=list(references),
            annotators_config=Path(judge.label),  # only a name here; a string would become a subfolder
            Annotator=annotator,
            judge=judge,
            # Matched by position: repeated instructions would be crossed with each other.
            annotation_kwargs={"is_ordered": True},
            output_path=folder,
            fn_metric=_win_rate,
            sort_by="win_rate",
            precomputed_leaderboard=None,
            is_cache_leaderboard=False,
            is_return_instead_of_print=True,
        )
    assert [row["instruction"] for row in annotated] == [row["instruction"] for row in outputs]
    return Evaluation([_annotation(row) for row in annotated], table.iloc[0].to_dict())


class _BothPositions:
    """In the place of the package's SingleAnnotator: rows of output_1, output_2 in, preferences out."""

    processors = ()

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __call__(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        pairs = list(zip(rows["instruction"], rows["output_1"], rows["output_2"], strict=True))
        straight = [Comparison.of(conversation(text), first, second) for text, first, second in pairs]
        verdicts = self._judge.compare(straight + [pair.swapped for pair in straight])
        both = list(zip(verdicts[: len(pairs)], verdicts[len(pairs) :], strict=True))
        return rows.assign(
            preference=[_preference(*pair) for pair in both],
            preference_raw_completion=[{"raw": [v.raw for v in pair], "error": _error(*pair)} for pair in both],
        )


def _preference(straight: Verdict, swapped: Verdict) -> float:
    if straight.value is None or swapped.value is None:
        return math.nan
    return (straight.value + 3 - swapped.value) / 2


def _error(straight: Verdict, swapped: Verdict) -> str | None:
    reasons = [v.error for v in (straight, swapped) if v.error is not None]
    return "; ".join(dict.fromkeys(reasons)) or None


def _win_rate(annotations: list[dict[str, Any]]) -> dict[str, float]:
    """The package's own figures, which need numbers even where every verdict failed (None in all rows)."""
    import pandas as pd
    from alpaca_eval.metrics import get_winrate

    table = pd.DataFrame.from_records(annotations)
    return get_winrate(table.assign(preference=table["preference"].astype(float)))


def _annotation(row: dict[str, Any]) -> Annotation:
    completion = row.get("preference_raw_completion")
    judged = completion if isinstance(completion, dict) else {"raw": (), "error": None}
    failed = judged["error"] is not None
    return Annotation(
        instruction=row["instruction"],
        reference=row["output_1"],
        output=row["output_2"],
        preference=None if failed else float(row["preference"]),
        error=judged["error"],
        raw=tuple(judged["raw"]),
    )


@cache
def _package() -> tuple[Any, type]:
    """The package and our annotator class; imported when needed, it takes a second and sets up logging."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
        import alpaca_eval
        from alpaca_eval.annotators.pairwise_evaluator import PairwiseAnnotatorLocal

    # PairwiseAnnotatorLocal, unlike PairwiseAnnotator, keeps no cache of annotations in site-packages.
    class JudgeAnnotator(PairwiseAnnotatorLocal):
        def __init__(self, *, judge: Judge, **kwargs: Any) -> None:
            self._judge = judge
            super().__init__(**kwargs)

        def _initialize_annotators(self, **_: Any) -> dict[str, _BothPositions]:
            return {self._judge.label: _BothPositions(self._judge)}

    return alpaca_eval, JudgeAnnotator
