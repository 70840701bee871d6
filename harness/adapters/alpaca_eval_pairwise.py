"""Annotator classes for AlpacaEval's package: one asks a judge of ours, one runs a configuration of the package.

Both descend from the package's class that, unlike its usual one, keeps no cache of annotations in site-packages.
"""

import math
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.adapters.alpaca_eval_annotator import PackageAnnotator
from harness.adapters.alpaca_eval_answers import KeptAnswers
from harness.judges import Comparison, Judge, Verdict
from harness.judges.journal import Journal
from harness.preferences import conversation
from harness.quiet import silenced

if TYPE_CHECKING:
    import pandas as pd

Pair = tuple[str, frozenset[str]]
"""An instruction and its two outputs, whichever the package showed first."""
Failure = tuple[str, str]
"""Why there is no preference, and what the annotator said."""


class Package(NamedTuple):
    """The package itself, and annotator classes for ``judge=`` and for ``annotator=, journal=, failures=``."""

    module: Any
    judged: type
    configured: type


@cache
def package() -> Package:
    """The package and our annotator classes; imported when needed, it takes a second and sets up logging."""
    with silenced(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
        import alpaca_eval
        from alpaca_eval.annotators.pairwise_evaluator import PairwiseAnnotatorLocal, SinglePairwiseAnnotator

    class JudgeAnnotator(PairwiseAnnotatorLocal):
        def __init__(self, *, judge: Judge, **kwargs: Any) -> None:
            self._judge = judge
            super().__init__(**kwargs)

        def _initialize_annotators(self, **_: Any) -> dict[str, _BothPositions]:
            return {self._judge.label: _BothPositions(self._judge)}

    class KeptAnnotator(SinglePairwiseAnnotator):
        """The package's annotator; answers are kept, and what cannot be read is noted in ``failures``."""

        def __init__(self, *, name: str, journal: Journal | None, failures: dict[Pair, Failure], **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self._failures = failures
            self._kept = KeptAnswers(self.fn_completions, name, journal, self._readable, self.completion_key)
            self.fn_completions = self._kept

        def _readable(self, completion: Any) -> bool:
            found, _ = self._parse_completions([completion])
            return not any(absent(value) for value in found)

        def _make_prompts(self, df_to_annotate: "pd.DataFrame", prompt_template: str | None = None) -> Any:
            prompts, table = super()._make_prompts(df_to_annotate, prompt_template)
            self._prompts = [prompt for prompt in prompts for _ in range(self.batch_size)]
            return prompts, table

        def _postprocess(self, df_annotated: "pd.DataFrame") -> "pd.DataFrame":
            column = self.annotation_column
            # Parsers say 0 for a tie, which the package would refuse.
            values = df_annotated[column].astype(float).replace({0.0: 1.5})
            df_annotated = df_annotated.assign(**{column: values.where(values.between(1, 2))})
            rows = zip(df_annotated.to_dict("records"), self._prompts, strict=True)
            for row, prompt in rows:
                if absent(row[column]):
                    completion = row[self.completion_column]
                    reason = self._kept.errors.get(prompt, "the annotator's answer cannot be read")
                    self._failures[pair_of(row)] = (reason, "" if absent(completion) else text_of(completion))
            return super()._postprocess(df_annotated)

    class ConfiguredAnnotator(PairwiseAnnotatorLocal):
        def __init__(
            self, *, annotator: PackageAnnotator, journal: Journal | None, failures: dict[Pair, Failure], **kwargs: Any
        ) -> None:
            self._annotator, self._journal, self._failed = annotator, journal, failures
            super().__init__(**kwargs)

        def _initialize_annotators(self, **kwargs: Any) -> dict[str, KeptAnnotator]:
            common = {"seed": self.seed, "base_dir": self._annotator.base_dir, "failures": self._failed}
            common |= {"annotation_column": self.annotation_key, "completion_column": self.completion_key}
            configs = deepcopy(dict(self._annotator.configs)).items()  # the package writes into them
            return {n: KeptAnnotator(name=n, journal=self._journal, **common, **c, **kwargs) for n, c in configs}

    return Package(alpaca_eval, JudgeAnnotator, ConfiguredAnnotator)


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


def pair_of(row: Mapping[str, Any]) -> Pair:
    return row["instruction"], frozenset((row["output_1"], row["output_2"]))


def text_of(completion: Any) -> str:
    """What an annotator wrote; with probabilities of tokens it comes as a whole choice."""
    return str(completion.get("text", completion)) if isinstance(completion, dict) else str(completion)


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
