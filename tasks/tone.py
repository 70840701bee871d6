"""Tone of texts by VADER, a lexicon and rules that nobody here trained (Hutto and Gilbert, ICWSM 2014)."""

import json
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Any, Literal, NamedTuple

from harness.data.triples import Triple
from harness.measure.statistics import Measurement, estimate_mean

Wanted = Literal["positive", "negative"]
"""Which tone is the better one."""


class Agreement(NamedTuple):
    """How often a tone says what preference triples say.

    ``chosen``, ``rejected`` and ``equal`` are the percentages of ``triples`` in which the chosen answer has the higher
    tone, the rejected one has, and both have the same; ``means`` the tone of all chosen and all rejected answers.
    ``share`` is the percentage with the higher tone chosen among triples where the two differ, ``low`` and ``high``
    its 95 % interval over prompts; nan where none differs, or one prompt alone.
    """

    triples: int
    chosen: float
    rejected: float
    equal: float
    share: float
    low: float
    high: float
    means: tuple[float, float]

    def sentence(self, wanted: Wanted) -> str:
        """What a reader of tones of answers to these prompts has to know."""
        share, low, high = self.share, self.low, self.high
        if wanted == "negative":
            share, low, high = 100 - share, 100 - high, 100 - low
        if low > 50:
            meaning = f"a more {wanted} tone is some evidence of the preference, and no more than that"
        elif high < 50:
            meaning = f"a more {wanted} tone speaks against the preference"
        else:
            meaning = "tone says nothing about the preference"
        return (
            f"On the {self.triples} triples behind these prompts VADER gives the chosen answer the higher tone in "
            f"{self.chosen:.0f} %, the rejected one in {self.rejected:.0f} % and both the same in {self.equal:.0f} % "
            f"(means {self.means[0]:.3f} and {self.means[1]:.3f}); where they differ the {wanted} one is chosen in "
            f"{share:.1f} % [{low:.1f}, {high:.1f}]: here {meaning}."
        )


def vader_version() -> str:
    """The version of the package that measures tone. Raises ValueError, with what to do, when it is missing."""
    try:
        return metadata.version("vaderSentiment")
    except metadata.PackageNotFoundError:
        raise ValueError(
            "tone is measured by the package vaderSentiment, which is not installed; install it: "
            "pip install 'dspa-bench[tone]' (or pip install vaderSentiment), or leave `tone` out"
        ) from None


def tone(text: str) -> float:
    """VADER's compound score of ``text``: -1 is most negative, 1 most positive, 0 neutral or empty."""
    return float(_analyser().polarity_scores(text)["compound"])


def agreement(triples: Sequence[Triple]) -> Agreement:
    """How far tone agrees with the labels of ``triples`` (at least one)."""
    tones = [(tone(t.chosen), tone(t.rejected)) for t in triples]
    n, n_chosen, n_rejected = len(tones), sum(a > b for a, b in tones), sum(a < b for a, b in tones)
    differ = [
        Measurement(0, json.dumps(triple.prompt), index, 100.0 * (chosen > rejected))
        for index, (triple, (chosen, rejected)) in enumerate(zip(triples, tones, strict=True))
        if chosen != rejected
    ]
    share = low = high = float("nan")
    if differ:
        found = estimate_mean(differ, bounds=(0.0, 100.0))
        share, low, high = found.mean, found.low, found.high
    means = sum(a for a, _ in tones) / n, sum(b for _, b in tones) / n
    equal = n - n_chosen - n_rejected
    return Agreement(n, 100 * n_chosen / n, 100 * n_rejected / n, 100 * equal / n, share, low, high, means)


@cache
def _analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
