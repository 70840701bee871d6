"""What a judge is: rates answers, compares two, scores harm, recognises refusals. Requests come in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, get_args, runtime_checkable

from pydantic import BaseModel, ConfigDict

from harness.data.triples import Conversation, Message
from harness.plugins import Registry

Verb = Literal["rate", "compare", "harm", "refusal"]
"""What can be asked of a judge."""
VERBS: frozenset[Verb] = frozenset(get_args(Verb))


@dataclass(frozen=True)
class Rating:
    """Rate the last assistant turn of ``conversation`` from 1 to 10.

    ``references`` are known good answers to its user turns, from the first on; empty where there are none.
    """

    conversation: Conversation
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Which of two conversations ends with the better answer; the user says the same in both.

    Both end with an assistant turn; earlier assistant turns may differ. ``references`` as in `Rating`.
    """

    first: Conversation
    second: Conversation
    references: tuple[str, ...] = ()

    @classmethod
    def of(cls, prompt: Conversation, first: str, second: str) -> "Comparison":
        """Two answers to the same ``prompt``."""
        return cls(
            (*prompt, Message(role="assistant", content=first)), (*prompt, Message(role="assistant", content=second))
        )

    @property
    def prompt(self) -> Conversation:
        """What the last answer of ``first`` answers."""
        return self.first[:-1]

    @property
    def answers(self) -> tuple[str, str]:
        """The two last answers."""
        return self.first[-1]["content"], self.second[-1]["content"]

    @property
    def swapped(self) -> "Comparison":
        """The same question with the answers in the other positions."""
        return Comparison(self.second, self.first, self.references)


@dataclass(frozen=True)
class Answer:
    """One answer to one prompt."""

    prompt: Conversation
    answer: str


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one request: ``value`` is None exactly when ``error`` says why.

    ``raw`` is the judge's own text, which goes into the evaluators' files.
    """

    value: float | None
    raw: str
    error: str | None = None


@runtime_checkable
class Judge(Protocol):
    """Verdicts come back in the order of the requests. ``verbs`` are those it can answer; others give errors.

    A run calls `check` before any work, `at` with a folder of its own in every process, and `prepare` once, before
    the first cell, on what `at` gave.
    """

    name: ClassVar[str]
    verbs: ClassVar[frozenset[Verb]]

    @property
    def label(self) -> str:
        """Short identity for tables and FastChat's judgment files, e.g. ``sandbox_oracle-v1``."""
        ...

    @property
    def statement(self) -> str:
        """One or two plain sentences for every report: who made these numbers and what that means."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a plan and a run must say of it beforehand, in sentences; `statement` says it in every report."""
        ...

    def check(self) -> None:
        """Raise ValueError, before any work, for settings, files or keys that cannot serve."""
        ...

    def prompts(self) -> list[str]:
        """The user prompts it was made from; training data that contains one of them is contaminated."""
        ...

    def at(self, folder: Path) -> "Judge":
        """This judge with what it keeps (verdicts, ledger, trained weights) in ``folder``, shared by all processes."""
        ...

    def prepare(self) -> None:
        """Do what verdicts need and what is to be done once, such as training a reward model.

        What it leaves in a subfolder of its folder never changes afterwards: if it does, the run removes it as damaged.
        """
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
    """Base for judges whose settings come from a suite file: unknown keys are refused.

    ``operational`` names the settings that no verdict depends on (how many requests at once, what may be spent):
    they may change between two sittings of one run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: ClassVar[str]
    verbs: ClassVar[frozenset[Verb]] = VERBS
    operational: ClassVar[frozenset[str]] = frozenset()

    @property
    def warnings(self) -> tuple[str, ...]:
        """None by default."""
        return ()

    def check(self) -> None:
        """Nothing outside its settings to check by default."""

    def prompts(self) -> list[str]:
        """None by default: most judges are made from no data that a method could be trained on."""
        return []

    def at(self, folder: Path) -> Self:
        """Itself: by default a judge keeps nothing."""
        return self

    def prepare(self) -> None:
        """Nothing to prepare by default."""


JUDGES: Registry[Judge] = Registry("judge")
register_judge = JUDGES.register
