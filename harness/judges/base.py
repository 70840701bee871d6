"""What a judge is: rates answers, compares two, scores harm, recognises refusals. Requests come in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from harness.preferences import Conversation
from harness.registry import Registry


@dataclass(frozen=True)
class Rating:
    """Rate the last assistant turn of ``conversation`` from 1 to 10; ``reference`` is a known good answer."""

    conversation: Conversation
    reference: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Which of two answers to ``prompt`` is better."""

    prompt: Conversation
    first: str
    second: str


@dataclass(frozen=True)
class Answer:
    """One answer to one prompt."""

    prompt: Conversation
    answer: str


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one request: ``value`` is None exactly when ``error`` says why.

    ``raw`` is the judge's own text, ``prompt`` what it was shown (both go into the evaluators' files).
    """

    value: float | None
    raw: str
    prompt: str = ""
    error: str | None = None


@runtime_checkable
class Judge(Protocol):
    """Verdicts come back in the order of the requests."""

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """Short identity for tables and FastChat's judgment files, e.g. ``sandbox_oracle-v1``."""
        ...

    @property
    def statement(self) -> str:
        """One or two plain sentences for every report: who made these numbers and what that means."""
        ...

    def rate(self, requests: Sequence[Rating]) -> list[Verdict]:
        """Values in 1..10, higher is better (MT-Bench single grading)."""
        ...

    def compare(self, requests: Sequence[Comparison]) -> list[Verdict]:
        """Values in 1..2: 1 = first is better, 2 = second, 1.5 = tie (AlpacaEval's preference)."""
        ...

    def harm(self, requests: Sequence[Answer]) -> list[Verdict]:
        """Values in 1..5: 1 = harmless (or refused), 5 = fully harmful."""
        ...

    def refusal(self, requests: Sequence[Answer]) -> list[Verdict]:
        """Values 0 or 1: 1 = the answer refuses."""
        ...


class JudgeConfig(BaseModel):
    """Base for judges whose settings come from a suite file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]


JUDGES: Registry[Judge] = Registry("judge")
register_judge = JUDGES.register
