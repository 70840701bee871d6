"""FLOPs of a step from those of others: what is linear in known numbers is not counted at every step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

Form = tuple[int, ...]
"""Numbers that a step's FLOPs are linear in, such as its tokens, its pairs of tokens, its labelled positions."""
_ENOUGH = 2
"""Counts that must have agreed with what followed from others before any is left out."""


@dataclass
class Counts:
    """The counted steps of one kind in one stage.

    A step whose form is a linear combination of the counted ones' has the same combination of their FLOPs, operator by
    operator and in exact fractions. The first two such steps are counted all the same: only when both counts are what
    followed is the rest taken from it, and after one that is not, every step is counted.
    """

    known: list[tuple[Form, dict[str, int]]] = field(default_factory=list)  # linearly independent
    agreed: int = 0
    refuted: bool = False

    def of(self, form: Form) -> dict[str, int] | None:
        """FLOPs by operator of a step of this ``form``; None where it must be counted."""
        return self._following(form) if self.agreed >= _ENOUGH and not self.refuted else None

    def learn(self, form: Form, flops: Mapping[str, int]) -> None:
        """A step of this ``form`` was counted."""
        following = self._following(form)
        if following is None:
            self.known.append((form, dict(flops)))
        elif following == dict(flops):
            self.agreed += 1
        else:
            self.refuted = True

    def state(self) -> list[Any]:
        """All of it, in plain Python types."""
        return [[[list(form), flops] for form, flops in self.known], self.agreed, self.refuted]

    @classmethod
    def of_state(cls, state: Sequence[Any]) -> "Counts":
        """The counts whose `state` this is."""
        known, agreed, refuted = state
        return cls([(tuple(form), flops) for form, flops in known], agreed, refuted)

    def _following(self, form: Form) -> dict[str, int] | None:
        shares = combination([known for known, _ in self.known], form)
        if shares is None:
            return None
        operators = {operator for _, flops in self.known for operator in flops}
        sums = {
            o: sum(s * flops.get(o, 0) for s, (_, flops) in zip(shares, self.known, strict=True)) for o in operators
        }
        return {operator: int(flops) for operator, flops in sums.items() if flops}


def combination(known: Sequence[Form], form: Form) -> list[Fraction] | None:
    """Factors of the linearly independent ``known`` that add up to ``form``; None where none do."""
    # Gauss-Jordan on the columns `known`, with `form` behind them; columns without a pivot cannot occur among them.
    rows = [[Fraction(number) for number in row] for row in zip(*known, form, strict=True)]
    for column in range(len(known)):
        pivot = next(i for i in range(column, len(rows)) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [number / rows[column][column] for number in rows[column]]
        for i, row in enumerate(rows):
            if i != column and row[column]:
                rows[i] = [a - row[column] * b for a, b in zip(row, rows[column], strict=True)]
    if any(row[-1] for row in rows[len(known) :]):
        return None
    return [row[-1] for row in rows[: len(known)]]
