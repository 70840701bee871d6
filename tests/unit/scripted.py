"""A model and a judge that answer what a test tells them to, and remember what they were asked."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from harness.data.triples import Conversation
from harness.experiment.cell import Answering
from harness.judging import Answer, Comparison, Rating, Verdict
from harness.judging.judge import VERBS
from harness.model.aligned import AlignedModel, Completion
from harness.model.generation import Batch
from harness.run_folder.answers import AnswerStore


class ScriptedModel:
    """``reply`` makes the answer to a conversation; raising ValueError in it fails that one row."""

    method = "scripted"
    intervention = None

    def __init__(self, reply: Callable[[Conversation], str], fingerprint: str = "f" * 64) -> None:
        self.reply = reply
        self.fingerprint = fingerprint
        self.calls: list[dict] = []

    def generate(self, conversations: Sequence[Conversation], **settings) -> list[Completion]:
        self.calls.append({"conversations": list(conversations), **settings})
        return [self._one(c) for c in conversations]

    def generate_batches(self, conversations: Sequence[Conversation], **settings) -> Iterator[Batch]:
        """One batch with everything; `stored` puts a store in front of it."""
        answers = self.generate(conversations, **settings)
        yield Batch(tuple(range(len(answers))), tuple(answers), None)

    def unaligned(self) -> "ScriptedModel":
        return ScriptedModel(self.reply, "b" * 64)

    def stored(self, path: Path) -> Answering:
        """This model as a run would ask it: answers are looked up in the file ``path`` first, new ones kept there."""
        return Answering(cast(AlignedModel, self), AnswerStore(path))

    def _one(self, conversation: Conversation) -> Completion:
        try:
            return Completion(self.reply(conversation), (5,), 3, 0, True)
        except ValueError as problem:
            return Completion("", (), 3, 0, False, str(problem))


class ScriptedJudge:
    """Verdicts by function; a function that returns None gives a failed verdict with raw text."""

    name = "scripted"
    verbs = VERBS
    label = "scripted-v1"
    statement = "Made up by a test."

    def __init__(self, *, rate=None, compare=None, harm=None, refusal=None) -> None:
        self._functions = {"rate": rate, "compare": compare, "harm": harm, "refusal": refusal}
        self.asked: list[Rating | Comparison | Answer] = []

    def check(self) -> None: ...

    def prompts(self) -> list[str]:
        return []

    def at(self, folder: Path) -> "ScriptedJudge":
        return self

    def prepare(self) -> None: ...

    def rate(self, requests: Sequence[Rating]) -> list[Verdict]:
        return self._verdicts("rate", requests)

    def compare(self, requests: Sequence[Comparison]) -> list[Verdict]:
        return self._verdicts("compare", requests)

    def harm(self, requests: Sequence[Answer]) -> list[Verdict]:
        return self._verdicts("harm", requests)

    def refusal(self, requests: Sequence[Answer]) -> list[Verdict]:
        return self._verdicts("refusal", requests)

    def _verdicts(self, kind: str, requests: Sequence) -> list[Verdict]:
        self.asked += requests
        values = [self._functions[kind](request) for request in requests]
        return [
            Verdict(None, "no rating in here", "cannot be parsed") if value is None else Verdict(value, f"[[{value}]]")
            for value in values
        ]
