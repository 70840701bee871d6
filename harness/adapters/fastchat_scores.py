"""What judgment files say: the means that FastChat's show_result prints, per turn and per category, with failures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from harness.adapters.fastchat_judgments import Judgment, PairJudgment
from harness.scores import Score

J = TypeVar("J", Judgment, PairJudgment)
Categories = Mapping[int, str]
"""{question_id: category}; empty where the questions are not at hand."""


def single_scores(judgments: Sequence[Judgment], categories: Categories) -> list[Score]:
    """Per model, in the order of the file: ``mt_bench`` (1-10), ``mt_bench_turn1``, ``_turn2``, one per category.

    Raises ValueError for a turn with two ratings, several judges, or a question without a category.
    """
    kept = _once(judgments, lambda j: j.model)
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
    models = list(dict.fromkeys(m for j in judgments for m in (j.model_1, j.model_2)))
    if baseline is not None:
        if baseline not in models:
            raise ValueError(f"no judgment is about the baseline {baseline!r}; there are {', '.join(models)}")
        judgments = [j for j in judgments if baseline in (j.model_1, j.model_2)]
    kept = _once(judgments, lambda j: " and ".join(sorted((j.model_1, j.model_2))))
    scores = []
    for model in models:
        own = [j for j in kept if model in (j.model_1, j.model_2)]
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


def _once(judgments: Sequence[J], who: Callable[[J], str]) -> list[J]:
    """One judgment of each turn: FastChat appends, so a failure may be followed by a later try."""
    judges = sorted({j.judge[0] for j in judgments})
    if len(judges) > 1:
        raise ValueError(
            f"the judgments are of several judges ({', '.join(judges)}); keep each judge's in its own file"
        )
    kept: dict[tuple[str, int, int], J] = {}
    for judgment in judgments:
        key = who(judgment), judgment.question_id, judgment.turn
        before = kept.get(key)
        if before is not None and not before.failed and not judgment.failed:
            raise ValueError(
                f"{key[0]}: turn {judgment.turn} of question {judgment.question_id} is judged twice; keep one of them"
            )
        if before is None or before.failed:
            kept[key] = judgment
    return list(kept.values())
