"""Answers to both turns of every question, generated in batches and kept in FastChat's format."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import ModelAnswer, Question
from harness.files import read_jsonl, write_jsonl
from harness.preferences import Conversation, Message

if TYPE_CHECKING:
    from harness.model import AlignedModel

Turn = tuple[int, int]
"""(question_id, 1 or 2)."""


@dataclass(frozen=True)
class Answers:
    """What one model said: {question_id: its turns}, and why a turn has no answer."""

    name: str
    turns: Mapping[int, tuple[str, ...]]
    failed: Mapping[Turn, str]

    @classmethod
    def of(cls, name: str, answers: Sequence[ModelAnswer], questions: Sequence[Question]) -> "Answers":
        """Those of a file; a turn without answer in it is a failure."""
        turns = {answer.question_id: answer.turns for answer in answers}
        failed = {
            (question.question_id, turn): f"{name} has no answer to turn {turn}"
            for question in questions
            for turn in (1, 2)
            if len(turns.get(question.question_id, ())) < turn
        }
        return cls(name, turns, failed)

    def turn(self, question_id: int, turn: int) -> str | None:
        """The answer to one turn, where there is one."""
        turns = self.turns.get(question_id, ())
        return turns[turn - 1] if len(turns) >= turn else None


@dataclass(frozen=True)
class Answering:
    """How questions are answered: at which temperature, how long, with which seed."""

    questions: Sequence[Question]
    temperature: Callable[[Question], float]
    max_new_tokens: int
    batch_size: int
    seed: int

    def by(self, model: "AlignedModel", folder: Path | None) -> Answers:
        """The answers of ``model``: those that ``folder`` has of it under these settings, else new ones, kept there."""
        name = f"{model.method}-{model.fingerprint[:12]}"
        there = None if folder is None else self._finished(model, fastchat.answer_path(folder, name))
        if there is not None:
            return Answers.of(name, there, self.questions)
        turns, failed = self._generate(model)
        answers = [
            ModelAnswer(q.question_id, self._id(model, q), name, turns[q.question_id], time.time())
            for q in self.questions
            if turns[q.question_id]
        ]
        if folder is not None:
            keep_answers(folder, name, answers)
        return Answers(name, turns, failed)

    def _id(self, model: "AlignedModel", question: Question) -> str:
        """Identity of an answer: the model and everything its generation depends on."""
        settings = [model.fingerprint, self.temperature(question), self.max_new_tokens, self.seed, question.turns]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:22]

    def _finished(self, model: "AlignedModel", path: Path) -> list[ModelAnswer] | None:
        """The answers of an earlier run with this model, these questions and settings, if all are there."""
        answers = fastchat.load_answers(path) if path.is_file() else []
        wanted = [self._id(model, question) for question in self.questions]
        if [a.answer_id for a in answers] != wanted or any(len(a.turns) != 2 for a in answers):
            return None
        return answers

    def _generate(self, model: "AlignedModel") -> tuple[dict[int, tuple[str, ...]], dict[Turn, str]]:
        """Answers to both turns, and why a turn has none (its conversation does not fit the context)."""
        turns: dict[int, tuple[str, ...]] = {q.question_id: () for q in self.questions}
        failed: dict[Turn, str] = {}
        for turn in (1, 2):
            asked = [q for q in self.questions if len(turns[q.question_id]) == turn - 1]
            completions = model.generate(
                [conversation(q, turns[q.question_id], turn) for q in asked],
                max_new_tokens=self.max_new_tokens,
                temperature=[self.temperature(q) for q in asked],
                seed=self.seed,
                batch_size=self.batch_size,
            )
            for question, completion in zip(asked, completions, strict=True):
                if completion.error is None:
                    turns[question.question_id] += (completion.text,)
                else:
                    for unanswered in range(turn, 3):
                        reason = f"no answer to turn {turn}: {completion.error}"
                        failed[question.question_id, unanswered] = reason
        return turns, failed


def keep_answers(folder: Path, name: str, answers: Sequence[ModelAnswer]) -> None:
    """Write an answer file, unless it has these answers already; without any answer there is no file.

    Judgments always belong to the answers that are there, so all judges' judgments of this model's others go first.
    """
    path = fastchat.answer_path(folder, name)
    before = fastchat.load_answers(path) if path.is_file() else None
    if before is not None and _said(before) == _said(answers):
        return
    for judged in (folder / "model_judgment").glob("*.jsonl"):
        rows = [row for _, row in read_jsonl(judged, "MT-Bench judgment")]
        kept = [row for row in rows if name not in (row.get("model"), row.get("model_1"), row.get("model_2"))]
        if kept:
            write_jsonl(judged, kept)
        else:
            judged.unlink()
    if answers:
        fastchat.write_answers(path, answers)
    else:
        path.unlink(missing_ok=True)


def conversation(question: Question, answers: Sequence[str], turn: int, *, answered: bool = False) -> Conversation:
    """The dialogue up to the user's turn ``turn``, or (``answered``) up to the model's answer to it."""
    messages: list[Message] = []
    for user, answer in zip(question.turns[:turn], (*answers[:turn], ""), strict=False):
        messages += [Message(role="user", content=user), Message(role="assistant", content=answer)]
    return tuple(messages if answered else messages[:-1])


def _said(answers: Sequence[ModelAnswer]) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(a.question_id, a.answer_id, a.turns) for a in answers]
