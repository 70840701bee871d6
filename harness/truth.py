"""What a planted world knows about its answers: which manner an answer is given in, and which is preferred."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from harness.data.triples import Conversation
from harness.plugins import TRUTHS, declared


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer to a prompt of kind ``group``, given in manner ``label``."""

    group: str
    label: str
    prompt: Conversation
    answer: str


@runtime_checkable
class GroundTruth(Protocol):
    """A world in which it is known how answers are given and how they should be."""

    @property
    def statement(self) -> str:
        """What groups and labels are, in plain words for a page of results."""
        ...

    @property
    def preferred(self) -> Mapping[str, str]:
        """Group of prompts -> the label that its preference data favour."""
        ...

    def group(self, prompt: Conversation) -> str | None:
        """The group a prompt belongs to; None when it is not of this world."""
        ...

    def answers(self) -> Sequence[LabelledAnswer]:
        """In every group, answers in each of the labels that occur there, alike but for the label."""
        ...


def ground_truth(base: str, folder: str | None) -> GroundTruth | None:
    """The world that the base model with identity ``base`` was made from; None when no installed package knows it.

    ``folder``: where the model is, if that is a local folder; what lies beside it may say more.
    """
    known = (entry.load()(base, None if folder is None else Path(folder)) for entry in declared(TRUTHS))
    return next((truth for truth in known if truth is not None), None)
