"""One judge's verdicts out of an evaluator's file (FastChat's or AlpacaEval's), by what was judged."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.adapters.alpaca_eval_files import load_annotations
from harness.adapters.fastchat_judgments import is_pair_file, load_judgments, load_pair_judgments
from harness.agreement import EVEN, Kind, Pair


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
