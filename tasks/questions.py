"""Whose questions a benchmark asks: a column of results says so where they are not the published ones."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import yaml

from harness.benchmark import Metric
from tasks.sandbox.grammar import understand

Published = Literal["MT-Bench", "AlpacaEval"]
T = TypeVar("T")


def asked_of(benchmark: Published, questions: Iterable[str]) -> str | None:
    """None where all ``questions`` are the published ones of ``benchmark``, by content; else whose they are, in words.

    Some of the published ones are still these. Questions that the sandbox's grammar reads, of either world, are the
    sandbox's.
    """
    found = set(questions)
    if {_digest(question) for question in found} <= _published()[benchmark]:
        return None
    return "sandbox questions" if all(map(understand, found)) else "own questions"


def titled(metric: Metric, benchmark: Published, whose: str | None, limit: int | None = None) -> Metric:
    """``metric`` under a title that says whose questions it is measured on, and that it is on ``limit`` of them alone:
    ``MT-Bench format, own questions``, ``MT-Bench, 24 questions``."""
    if whose is None and limit is None:
        return metric
    rest = metric.title.removeprefix(benchmark).strip()
    title = benchmark if whose is None else f"{benchmark} format"
    title += ", " + " ".join(str(part) for part in (limit, whose or "questions") if part is not None)
    return metric.model_copy(update={"title": f"{title}: {rest}" if rest else title})


def evenly(rows: Sequence[T], limit: int | None, file: Path) -> list[T]:
    """``limit`` of the ``rows`` of ``file``, evenly spaced, so that each category has its share where they are sorted.

    Raises ValueError for more than there are.
    """
    if limit is None:
        return list(rows)
    if limit > len(rows):
        raise ValueError(f"limit: {limit} is more than the {len(rows)} questions of {file}; give at most {len(rows)}")
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _digest(question: str) -> str:
    return hashlib.sha256(question.strip().encode()).hexdigest()[:12]


@cache
def _published() -> dict[str, frozenset[str]]:
    listed = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return {benchmark: frozenset(digests.split()) for benchmark, digests in listed.items()}
