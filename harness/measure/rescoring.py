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
from typing import Any, TypeVar

from harness.evaluators.alpaca_eval.files import load_annotations
from harness.evaluators.alpaca_eval.length_control import LengthControl, UnavailableError
from harness.evaluators.fastchat.files import Judgment, PairJudgment, is_pair_file, load_judgments, load_pair_judgments
from harness.measure.agreement import EVEN, Kind, Pair
from harness.plugins import need

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


def write_scores(scores: Iterable[Score]) -> None:
    """CSV with a header to standard output; 15 digits, and an empty value where there is none."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(field.name for field in fields(Score))
    for score in scores:
        writer.writerow(f"{v:.15g}" if isinstance(v, float) else v for v in astuple(score))


def single_scores(judgments: Sequence[Judgment], categories: Categories) -> list[Score]:
    """Per model, in the order of the file: ``mt_bench`` (1-10), ``mt_bench_turn1``, ``_turn2``, one per category.

    A question without a category is in none, and in all else. Raises ValueError for a turn with two ratings, and for
    several judges.
    """
    kept = _once(judgments)
    return [
        _score(model, metric, [float(j.score) for j in found if not j.failed], len(found))
        for model in dict.fromkeys(j.model for j in judgments)
        for metric, found in _groups("mt_bench", [j for j in kept if j.model == model], categories)
    ]


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
    for category in dict.fromkeys(categories.values()):
        found = [j for j in judgments if categories.get(j.question_id) == category]
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

    need("alpaca_eval", "scoring AlpacaEval's annotations")
    from harness.evaluators.alpaca_eval.evaluate import get_winrate, length_controlled_figures

    scores: list[Score] = []
    notes = []
    for model in dict.fromkeys(row["generator_2"] for row in annotations):
        of_model = pd.DataFrame([row for row in annotations if row["generator_2"] == model])
        annotators = list(dict.fromkeys(of_model["annotator"]))
        if len(annotators) > 1:
            raise ValueError(
                f"{model} has verdicts of several annotators ({', '.join(annotators)}), whose mean would say nothing; "
                "give a file for each"
            )
        figures = get_winrate(of_model)
        named = {name: figures[name] for name in ("win_rate", "standard_error", "discrete_win_rate")}
        found = {name: None if math.isnan(value) else float(value) for name, value in named.items()}
        judged = of_model["preference"].notna()
        try:
            control = LengthControl.load(data)
            predicted = [p for p, known in zip(control.predict(of_model), judged, strict=True) if known]
            controlled = length_controlled_figures(predicted)
            found[f"lc_win_rate{control.suffix}"] = controlled["length_controlled_winrate"]
            found[f"lc_standard_error{control.suffix}"] = controlled["lc_standard_error"]
            notes.append(f"{model}: {control.statement}")
        except UnavailableError as problem:
            notes.append(f"{model}: no length-controlled win rate: {problem}")
        n = int(figures["n_total"])
        scores += [Score(model, name, value, n, len(of_model) - n) for name, value in found.items()]
        length = int(sum(map(len, of_model["output_2"])) / len(of_model))
        scores.append(Score(model, "avg_length", length, len(of_model), 0))
    return scores, notes


_RATINGS = "FastChat's ratings of single answers"
_PAIRS = "FastChat's judgments of pairs"
_ANNOTATIONS = "AlpacaEval's annotations"
_Key = tuple[str, *tuple[Hashable, ...]]
"""The model that gave an answer, and what tells the answer from all others of the file."""
_Verdict = tuple[Hashable, float | None]
"""The question, and a rating, or a win rate in percent; None for a failed verdict."""


@dataclass(frozen=True)
class Matched:
    """The verdicts of two files on the same answers: ``pairs`` where both have one, ``failed`` where one has none.

    Models are in the order of the first file; ``alone`` counts the answers that only the first or only the second file
    judges.
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
        raise ValueError(f"{first} holds {kind} and {second} {other_kind}; give two of one kind")
    if kind is _PAIRS:
        others = dict(_as_named(key, verdict, mine) for key, verdict in others.items())
    found = mine.keys() & others.keys()
    if not found:
        raise ValueError(
            f"{first} and {second} have no answer in common (the first is about {_models(mine)}, "
            f"the second about {_models(others)})"
        )
    both = [key for key in mine if key in found]
    pairs: dict[str, list[Pair]] = {model: [] for model, *_ in both}
    failed = dict.fromkeys(pairs, 0)
    for key in both:
        model, (cluster, value), (_, other) = key[0], mine[key], others[key]
        if value is None or other is None:
            failed[model] += 1
        else:
            pairs[model].append(Pair(model, 0, cluster, value, other))
    alone = len(mine) - len(found), len(others) - len(found)
    return Matched("rating" if kind is _RATINGS else "verdict", pairs, failed, alone)


def _read(path: Path) -> tuple[str, dict[_Key, _Verdict]]:
    """What the file holds, and its verdicts. AlpacaEval's files are JSON lists, FastChat's are JSON lines."""
    if path.is_file() and path.read_bytes().lstrip()[:1] == b"[":
        kind, verdicts = _ANNOTATIONS, _annotations(path)
    elif is_pair_file(path):
        kind, verdicts = _PAIRS, _pairs(path)
    else:
        kind, verdicts = _RATINGS, _ratings(path)
    found: dict[_Key, _Verdict] = {}
    for key, verdict in verdicts:
        if key in found:
            text = ", ".join(str(part)[:40] for part in key)
            raise ValueError(f"{path}: the same answer is judged twice ({text}); keep one judgment of each answer")
        found[key] = verdict
    return kind, found


def _ratings(path: Path) -> Iterator[tuple[_Key, _Verdict]]:
    for j in load_judgments(path):
        yield (j.model, j.question_id, j.turn), (j.question_id, None if j.failed else float(j.score))


def _pairs(path: Path) -> Iterator[tuple[_Key, _Verdict]]:
    """Verdicts on a pair are about the model that the file names first where it has the pair first."""
    named: dict[frozenset[str], tuple[str, str]] = {}
    for j in load_pair_judgments(path):
        one, other = named.setdefault(frozenset(j.models), j.models)
        yield (one, j.question_id, j.turn, other), (j.question_id, None if j.failed else j.win_rate(one))


def _as_named(key: _Key, verdict: _Verdict, there: Mapping[_Key, _Verdict]) -> tuple[_Key, _Verdict]:
    """A pair's verdict as ``there`` has it, where that names the other model first."""
    one, question, turn, other = key
    turned: _Key = (str(other), question, turn, one)
    if key in there or turned not in there:
        return key, verdict
    cluster, value = verdict
    return turned, (cluster, None if value is None else 100 - value)


def _annotations(path: Path) -> Iterator[tuple[_Key, _Verdict]]:
    """The reference and both texts tell an annotation from others: verdicts on other answers do not compare."""
    for row in load_annotations(path):
        preference = row["preference"]
        compared = (row[key] for key in ("instruction", "generator_1", "output_1", "output_2"))
        value = None if math.isnan(preference) else EVEN if preference == 0 else 100 * (preference - 1)
        yield (row["generator_2"], *compared), (row["instruction"], value)


def _models(found: dict[_Key, _Verdict]) -> str:
    return ", ".join(sorted({model for model, *_ in found}))
