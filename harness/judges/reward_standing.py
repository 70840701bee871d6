"""What is known of a reward model: how often it is right on held-out triples, and how its scores are spread there."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.files import read_text, write_text
from harness.preferences import Triple


@dataclass(frozen=True)
class Standing:
    """``accuracy``: % of ``triples`` held-out triples whose chosen answer scores higher (an equal score counts half).

    ``low`` and ``high`` are Wilson's 95 % interval over the ``prompts`` different prompts among them, so triples with
    the same prompt are not taken for independent. ``scores`` are those of all their answers, in ascending order.
    ``trained_on`` is the number of triples that the model was trained on here (0: it was there before).
    """

    accuracy: float
    low: float
    high: float
    triples: int
    prompts: int
    trained_on: int
    scores: tuple[float, ...]

    @classmethod
    def of(
        cls, triples: Sequence[Triple], chosen: Sequence[float], rejected: Sequence[float], *, trained_on: int
    ) -> "Standing":
        """From the scores of the chosen and rejected answers of triples that were not trained on."""
        from statsmodels.stats.proportion import proportion_confint

        right = [float(a > b) + 0.5 * float(a == b) for a, b in zip(chosen, rejected, strict=True)]
        accuracy, prompts = float(np.mean(right)), len({json.dumps(t.prompt) for t in triples})
        low, high = np.array(proportion_confint(accuracy * prompts, prompts, method="wilson"), float).tolist()
        known = tuple(sorted([*chosen, *rejected]))
        return cls(100 * accuracy, 100 * low, 100 * high, len(triples), prompts, trained_on, known)

    @classmethod
    def read(cls, path: Path) -> "Standing":
        """What `write` wrote; ValueError naming the file when it is missing or damaged."""
        try:
            values = json.loads(read_text(path, "reward model's standing"))["standing"]
            return cls(**(values | {"scores": tuple(values["scores"])}))
        except (KeyError, TypeError, json.JSONDecodeError) as problem:
            raise ValueError(f"{path}: damaged ({problem}); remove its folder and run again") from None

    def write(self, path: Path, **more: Any) -> None:
        """JSON with ``more`` beside it."""
        write_text(path, json.dumps({**more, "standing": asdict(self)}, indent=2) + "\n")

    def share_below(self, score: float) -> float:
        """Where ``score`` stands among the known ones: 0 at the lowest or below, 1 at the highest or above.

        Linear between neighbours; known scores that are equal share the middle of their ranks.
        """
        values, shares = self._curve
        return float(np.interp(score, values, shares))

    @cached_property
    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        values, first, counts = np.unique(self.scores, return_index=True, return_counts=True)
        return values, (first + (counts - 1) / 2) / (len(self.scores) - 1)
