"""Annotator classes for AlpacaEval's package: one asks a judge of ours, one runs a configuration of the package.

Both descend from the package's class that, unlike its usual one, keeps no cache of annotations in site-packages. A row
without a preference has {"raw": texts, "error": reason} as its raw completion, and so has every row of a judge.
Importing this imports the package, which takes a second and sets up logging (`evaluate.package` hides that).
"""

import math
from copy import deepcopy
from typing import Any

import pandas as pd
from alpaca_eval.annotators.pairwise_evaluator import PairwiseAnnotatorLocal, SinglePairwiseAnnotator

from harness.data.triples import conversation
from harness.evaluators.alpaca_eval.annotator import KeptAnswers, PackageAnnotator, absent, text_of
from harness.judging import Comparison, Judge
from harness.judging.verdicts import Journal


class JudgeAnnotator(PairwiseAnnotatorLocal):
    """Asks ``judge`` for every pair in both positions."""

    def __init__(self, *, judge: Judge, **kwargs: Any) -> None:
        self._judge = judge
        super().__init__(**kwargs)

    def _initialize_annotators(self, **_: Any) -> dict[str, Any]:
        return {self._judge.label: _BothPositions(self._judge)}


class ConfiguredAnnotator(PairwiseAnnotatorLocal):
    """Runs the package's ``annotator``, whose answers are kept in ``journal``."""

    def __init__(self, *, annotator: PackageAnnotator, journal: Journal | None, **kwargs: Any) -> None:
        self._annotator, self._journal = annotator, journal
        super().__init__(**kwargs)

    def _initialize_annotators(self, **kwargs: Any) -> dict[str, Any]:
        common = {"seed": self.seed, "base_dir": self._annotator.base_dir}
        common |= {"annotation_column": self.annotation_key, "completion_column": self.completion_key}
        configs = deepcopy(dict(self._annotator.configs)).items()  # the package writes into them
        return {n: _KeptAnnotator(name=n, journal=self._journal, **common, **c, **kwargs) for n, c in configs}


class _BothPositions:
    """In the place of the package's SingleAnnotator: rows of output_1, output_2 in, preferences out."""

    processors = ()

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        pairs = zip(rows["instruction"], rows["output_1"], rows["output_2"], strict=True)
        straight = [Comparison.of(conversation(text), first, second) for text, first, second in pairs]
        verdicts = self._judge.compare(straight + [pair.swapped for pair in straight])
        preferences, completions = [], []
        for one, other in zip(verdicts[: len(straight)], verdicts[len(straight) :], strict=True):
            first, second = (math.nan if v.value is None else v.value for v in (one, other))
            preferences.append((first + 3 - second) / 2)
            reasons = dict.fromkeys(v.error for v in (one, other) if v.error is not None)
            completions.append({"raw": [one.raw, other.raw], "error": "; ".join(reasons) or None})
        return rows.assign(preference=preferences, preference_raw_completion=completions)


class _KeptAnnotator(SinglePairwiseAnnotator):
    """The package's annotator; answers are kept, and rows whose answer cannot be read stay, with the reason."""

    def __init__(self, *, name: str, journal: Journal | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kept = KeptAnswers(self.fn_completions, name, journal, self._readable, self.completion_key)
        self.fn_completions = self._kept

    def _readable(self, completion: Any) -> bool:
        found, _ = self._parse_completions([completion])
        return not any(absent(value) for value in found)

    def _make_prompts(self, df_to_annotate: pd.DataFrame, prompt_template: str | None = None) -> Any:
        prompts, table = super()._make_prompts(df_to_annotate, prompt_template)
        self._prompts = [prompt for prompt in prompts for _ in range(self.batch_size)]
        return prompts, table

    def _postprocess(self, df_annotated: pd.DataFrame) -> pd.DataFrame:
        # Parsers say 0 for a tie, which the package would refuse.
        values = df_annotated[self.annotation_column].astype(float).replace({0.0: 1.5})
        values = values.where(values.between(1, 2))
        completions = [
            self._failure(completion, prompt) if absent(value) else completion
            for value, completion, prompt in zip(
                values, df_annotated[self.completion_column], self._prompts, strict=True
            )
        ]
        table = df_annotated.assign(**{self.annotation_column: values, self.completion_column: completions})
        for processor in reversed(self.processors):  # as the package does, which drops rows without a preference
            table = processor.postprocess(table)
        return table

    def _failure(self, completion: Any, prompt: str) -> dict[str, Any]:
        reason = self._kept.errors.get(prompt, "the annotator's answer cannot be read")
        text = "" if absent(completion) else text_of(completion)
        return {"raw": [text] if text else [], "error": reason}
