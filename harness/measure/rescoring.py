"""Figures of verdicts that are already in an evaluator's files (FastChat's or AlpacaEval's); nothing is judged.

Scores are one line each: model, metric, value, n, failures. `match` pairs up two judges' files on the same answers.
"""

import csv
import math
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from harness.evaluators.alpaca_eval.files import load_annotations
from harness.evaluators.alpaca_eval.length_control import LengthControl, UnavailableError
from harness.evaluators.fastchat.files import Judgment, PairJudgment, is_pair_file, load_judgments, load_pair_judgments
from harness.measure.agreement import EVEN, Kind, Pair

if TYPE_CHECKING:
    import pandas as pd

J = TypeVar("J", Judgment, PairJudgment)
Categories = Mapping[int, str]
"""{question_id: category}; empty where the questions are not at hand."""


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


def single_scores(judgments: Sequence[Judgment], categories: Categories) -> list[Score]:
    """Per model, in the order of the file: ``mt_bench`` (1-10), ``mt_bench_turn1``, ``_turn2``, one per category.

    Raises ValueError for a turn with two ratings, several judges, or a question without a category.
    """
    kept = _once(judgments)
    scores = []
    for model in dict.fromkeys(j.model for j in judgments):
        for metric, found in _groups("mt_bench", [j for j in kept if j.model == model], categories):
            values = [float(j.score) for j in found if not j.failed]
            scores.append(_score(model, metric, values, len(found)))
    return scores


def pair_scores(judgments: Sequence[PairJudgment], categories: Categories, baseline: str | None) -> list[Score]:
    """Per model ``mt_bench_win``: win rate in percent, ties half, over all its pairs; per turn and category too.

    A win counts when both orders agree on it, else it is a tie. ``mt_bench_win_wins``, ``_ties`` and ``_losses`` are
    the counts. With a ``baseline`` only pairs with it count, and it has no line of its own.
    Raises ValueError as `single_scores` does, and for a baseline that no pair has.
    """
    models = list(dict.fromkeys(m for j in judgments for m in j.models))
    if baseline is not None:
        if baseline not in models:
            raise ValueError(f"no judgment is about the baseline {baseline!r}; there are {', '.join(models)}")
        judgments = [j for j in judgments if baseline in j.models]
    kept = _once(judgments)
    scores = []
    for model in models:
        own = [j for j in kept if model in j.models]
        if model == baseline or not own:
            continue
        for metric, found in _groups("mt_bench_win", own, categories):
            values = [j.win_rate(model) for j in found if not j.failed]
            scores.append(_score(model, metric, values, len(found)))
            if metric == "mt_bench_win":
                n, failures = scores[-1].n, scores[-1].failures
                for name, value in (("wins", 100.0), ("ties", 50.0), ("losses", 0.0)):
                    scores.append(Score(model, f"{metric}_{name}", float(values.count(value)), n, failures))
    return scores


def _groups(metric: str, judgments: Sequence[J], categories: Categories) -> Iterator[tuple[str, list[J]]]:
    """(metric, the judgments it is made of): all, each turn, each category in the order of the questions."""
    yield metric, list(judgments)
    for turn in (1, 2):
        yield f"{metric}_turn{turn}", [j for j in judgments if j.turn == turn]
    unknown = {j.question_id for j in judgments} - categories.keys()
    if categories and unknown:
        raise ValueError(f"question {min(unknown)} is not among the questions; give those that were judged")
    for category in dict.fromkeys(categories.values()):
        found = [j for j in judgments if categories[j.question_id] == category]
        if found:
            yield f"{metric}_{category}", found


def _score(model: str, metric: str, values: Sequence[float], found: int) -> Score:
    return Score(model, metric, fmean(values) if values else None, len(values), found - len(values))


def _once(judgments: Sequence[J]) -> list[J]:
    """One judgment of each turn: FastChat appends, so a failure may be followed by a later try."""
    judges = sorted({j.judge[0] for j in judgments})
    if len(judges) > 1:
        raise ValueError(
            f"the judgments are of several judges ({', '.join(judges)}); keep each judge's in its own file"
        )
    kept: dict[tuple[str, int, int], J] = {}
    for judgment in judgments:
        key = " and ".join(sorted(judgment.models)), judgment.question_id, judgment.turn
        before = kept.get(key)
        if before is not None and not before.failed and not judgment.failed:
            raise ValueError(
                f"{key[0]}: turn {judgment.turn} of question {judgment.question_id} is judged twice; keep one of them"
            )
        if before is None or before.failed:
            kept[key] = judgment
    return list(kept.values())


def annotation_scores(annotations: Sequence[dict[str, Any]], data: Path) -> tuple[list[Score], list[str]]:
    """Scores of every model, and what is to be said about its length-controlled win rate, in a sentence each.

    ``annotations`` are those of `load_annotations`; ``data`` is the folder with the inputs of the regression. In
    percent, but for the average length, which is in characters and rounded down, as in the package's leaderboards. A
    verdict that failed counts as a failure of every metric but that. Raises ValueError for two annotators of one model.
    """
    import pandas as pd

    from harness.evaluators.alpaca_eval.evaluate import get_winrate, length_controlled_figures

    scores, notes = [], []
    for model in dict.fromkeys(row["generator_2"] for row in annotations):
        of_model = pd.DataFrame([row for row in annotations if row["generator_2"] == model])
        annotators = list(dict.fromkeys(of_model["annotator"]))
        if len(annotators) > 1:
            raise ValueError(
                f"{model} has verdicts of several annotators ({', '.join(annotators)}), whose mean would say nothing; "
                "give a file for each"
            )
        figures = get_winrate(of_model)
        predicted, note = _length_controlled(of_model, data)
        notes.append(f"{model}: {note}")
        if predicted is not None:
            preferences = zip(predicted, of_model["preference"], strict=True)
            figures |= length_controlled_figures([p for p, preference in preferences if not math.isnan(preference)])
        scores += _annotation_scores(model, of_model, figures)
    return scores, notes


def _annotation_scores(model: str, table: "pd.DataFrame", figures: dict[str, float]) -> list[Score]:
    n = int(figures["n_total"])
    failures = len(table) - n
    names = {name: name for name in ("win_rate", "standard_error", "discrete_win_rate")}
    names |= {"length_controlled_winrate": "lc_win_rate", "lc_standard_error": "lc_standard_error"}
    known = {name: _number(figures[of_package]) for of_package, name in names.items() if of_package in figures}
    scores = [Score(model, name, value, n, failures) for name, value in known.items()]
    length = int(sum(map(len, table["output_2"])) / len(table))
    return [*scores, Score(model, "avg_length", length, len(table), 0)]


def _length_controlled(table: "pd.DataFrame", data: Path) -> tuple[list[float] | None, str]:
    """Predictions at equal lengths, or None; and how they were made, or why there are none."""
    try:
        control = LengthControl.load(data)
        return control.predict(table), control.statement
    except UnavailableError as problem:
        return None, f"no length-controlled win rate: {problem}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


@dataclass(frozen=True)
class Judged:
    """One judged answer; ``value`` (a rating, or a win rate in percent) is None for a failed verdict.

    ``model`` gave the answer, ``cluster`` is its question, ``what`` tells it from all others of the same file.
    """

    model: str
    cluster: Hashable
    what: tuple[Hashable, ...]
    value: float | None


@dataclass(frozen=True)
class Matched:
    """The verdicts of two files on the same answers: ``pairs`` where both have one, ``failed`` where one has none.

    ``models`` are in the order of the first file; ``alone`` counts the answers that only the first or only the second
    file judges.
    """

    kind: Kind
    pairs: dict[str, list[Pair]]
    failed: dict[str, int]
    alone: tuple[int, int]


def match(first: Path, second: Path) -> Matched:
    """Pair up two files of the same kind.

    Raises ValueError for files of different kinds, an answer judged twice in a file, or none that both judge.
    """
    (kind, mine), (other_kind, others) = _read(first), _read(second)
    if kind != other_kind:
        raise ValueError(f"{first} holds {_NAMES[kind]} and {second} {_NAMES[other_kind]}; give two of one kind")
    found = mine.keys() & others.keys()
    if not found:
        raise ValueError(
            f"{first} and {second} have no answer in common (the first is about {_models(mine)}, "
            f"the second about {_models(others)})"
        )
    both = [(judged, others[key]) for key, judged in mine.items() if key in found]
    models = dict.fromkeys(judged.model for judged, _ in both)
    pairs: dict[str, list[Pair]] = {model: [] for model in models}
    failed = dict.fromkeys(models, 0)
    for a, b in both:
        if a.value is None or b.value is None:
            failed[a.model] += 1
        else:
            pairs[a.model].append(Pair(a.model, 0, a.cluster, a.value, b.value))
    return Matched(
        "rating" if kind == "ratings" else "verdict", pairs, failed, (len(mine) - len(both), len(others) - len(both))
    )


_NAMES = {
    "ratings": "FastChat's ratings of single answers",
    "pairs": "FastChat's judgments of pairs",
    "annotations": "AlpacaEval's annotations",
}
_Key = tuple[Hashable, ...]


def _read(path: Path) -> tuple[str, dict[_Key, Judged]]:
    """(key of `_NAMES`, what was judged -> verdict). AlpacaEval's files are JSON lists, FastChat's are JSON lines."""
    if path.is_file() and path.read_bytes().lstrip()[:1] == b"[":
        return "annotations", _by_key(path, _annotations(path))
    if is_pair_file(path):
        return "pairs", _by_key(path, _pairs(path))
    return "ratings", _by_key(path, _ratings(path))


def _ratings(path: Path) -> Iterable[Judged]:
    for j in load_judgments(path):
        yield Judged(j.model, j.question_id, (j.question_id, j.turn), None if j.failed else float(j.score))


def _pairs(path: Path) -> Iterable[Judged]:
    for j in load_pair_judgments(path):
        what = (j.question_id, j.turn, j.model_2)
        yield Judged(j.model_1, j.question_id, what, None if j.failed else j.win_rate(j.model_1))


def _annotations(path: Path) -> Iterable[Judged]:
    """The reference and both texts tell an annotation from others: verdicts on other answers do not compare."""
    for row in load_annotations(path):
        preference = row["preference"]
        what = tuple(row[key] for key in ("instruction", "generator_1", "output_1", "output_2"))
        value = None if math.isnan(preference) else EVEN if preference == 0 else 100 * (preference - 1)
        yield Judged(row["generator_2"], row["instruction"], what, value)


def _by_key(path: Path, verdicts: Iterable[Judged]) -> dict[_Key, Judged]:
    found: dict[_Key, Judged] = {}
    for judged in verdicts:
        key = (judged.model, *judged.what)
        if key in found:
            text = ", ".join(str(part)[:40] for part in key)
            raise ValueError(f"{path}: the same answer is judged twice ({text}); keep one judgment of each answer")
        found[key] = judged
    return found


def _models(found: dict[_Key, Judged]) -> str:
    return ", ".join(sorted({judged.model for judged in found.values()}))
