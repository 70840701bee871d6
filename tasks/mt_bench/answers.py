"""Answers to both turns of every question, and their export in FastChat's format."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.data.triples import Conversation, Message
from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import ModelAnswer, Question
from harness.files import read_jsonl, write_jsonl
from harness.model.aligned import AlignedModel

Turn = tuple[int, int]
"""(question_id, 1 or 2)."""


@dataclass(frozen=True)
class Answers:
    """What one model said: {question_id: its turns}, and why a turn has no answer.

    ``stored``: {turn: what a record says of its answer (`Completion.record_fields`)}; empty for answers of a file.
    """

    name: str
    turns: Mapping[int, tuple[str, ...]]
    failed: Mapping[Turn, str]
    stored: Mapping[Turn, dict[str, str | None]] = field(default_factory=dict)

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

    def record_fields(self, key: Turn) -> dict[str, str | None]:
        """What a record's ``raw`` says of the answer to a turn."""
        return self.stored.get(key, {"answer": self.turn(*key)})

    def in_fastchats_format(self) -> list[ModelAnswer]:
        """Those of the questions that have any."""
        return [
            ModelAnswer(number, _id(self.name, number, turns), self.name, turns, time.time())
            for number, turns in self.turns.items()
            if turns
        ]


def ask(
    model: AlignedModel,
    questions: Sequence[Question],
    *,
    temperature: Callable[[Question], float],
    max_new_tokens: int,
    seed: int,
    batch_size: int,
) -> Answers:
    """Both turns of every question, the second in the conversation that holds the first answer."""
    turns: dict[int, tuple[str, ...]] = {q.question_id: () for q in questions}
    failed: dict[Turn, str] = {}
    stored: dict[Turn, dict[str, str | None]] = {}
    for turn in (1, 2):
        asked = [q for q in questions if len(turns[q.question_id]) == turn - 1]
        completions = model.generate(
            [conversation(q, turns[q.question_id], turn) for q in asked],
            max_new_tokens=max_new_tokens,
            temperature=[temperature(q) for q in asked],
            seed=seed,
            batch_size=batch_size,
        )
        for question, completion in zip(asked, completions, strict=True):
            number = question.question_id
            if completion.error is None:
                turns[number] += (completion.text,)
                stored[number, turn] = completion.record_fields
            else:  # its conversation does not fit the context, and a longer one will not either
                failed |= {(number, later): f"no answer to turn {turn}: {completion.error}" for later in (turn, 2)}
    return Answers(f"{model.method}-{model.fingerprint[:12]}", turns, failed, stored)


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


def _said(answers: Sequence[ModelAnswer]) -> list[tuple[int, tuple[str, ...]]]:
    return [(answer.question_id, answer.turns) for answer in answers]


def _id(name: str, question_id: int, turns: Sequence[str]) -> str:
    """FastChat's are random; this one stays the same for the same answer."""
    return hashlib.sha256(json.dumps([name, question_id, turns]).encode()).hexdigest()[:22]
