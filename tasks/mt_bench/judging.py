"""What models answered to the turns of every question, and what a judge makes of it, in FastChat's files.

An answer is rated by itself, or two models' are compared in both orders; good judgments are kept.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from harness.data.triples import Conversation, Message
from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import FAILED_SCORE, Judgment, ModelAnswer, PairJudgment, Question, Winner
from harness.files import read_jsonl, write_jsonl
from harness.judging import Comparison, Judge, Rating, Verdict

Turn = tuple[int, int]
"""(question_id, 1 or 2)."""
J = TypeVar("J", Judgment, PairJudgment)
Judged = tuple[dict[tuple, J], dict[tuple, str]]
"""Judgments by (model, turn), or (model 1, model 2, turn); and why a turn has no verdict, or not in one order."""
PROMPT_LEFT_OUT = ""
"""In a judgment's ``user_prompt``: it would hold the answer once more, which is beside it in its own file."""
TIE = 1.5
"""A preference of 1 (first) to 2 (second) on this mark is a tie."""


@dataclass(frozen=True)
class Answers:
    """What one model said: {question_id: its turns}, and why a turn has no answer.

    ``stored``: {turn: what a record says of its answer (`Completion.record_fields`)}; empty for answers of a file.
    """

    name: str
    turns: Mapping[int, tuple[str, ...]]
    failed: Mapping[Turn, str] = field(default_factory=dict)
    stored: Mapping[Turn, dict[str, str | None]] = field(default_factory=dict)

    @classmethod
    def complete(
        cls, path: Path, answers: Sequence[ModelAnswer], questions: Sequence[Question], advice: str
    ) -> "Answers":
        """Those of the file ``path``, in which no turn may be missing; ``advice`` goes into the ValueError."""
        found = cls(path.stem, {answer.question_id: answer.turns for answer in answers})
        for question in questions:
            for turn in range(1, len(question.turns) + 1):
                if found.turn(question.question_id, turn) is None:
                    raise ValueError(f"{path}: no answer to turn {turn} of question {question.question_id}; {advice}")
        return found

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


def _id(name: str, question_id: int, turns: Sequence[str]) -> str:
    """FastChat's are random; this one stays the same for the same answer."""
    return hashlib.sha256(json.dumps([name, question_id, turns]).encode()).hexdigest()[:22]


def keep_answers(folder: Path, name: str, answers: Sequence[ModelAnswer]) -> None:
    """Write an answer file, unless it has these answers already; without any answer there is no file.

    Judgments always belong to the answers that are there, so all judges' judgments of this model's others go first.
    """
    path = fastchat.answer_path(folder, name)
    before = fastchat.load_answers(path) if path.is_file() else None
    if before is not None and [(a.question_id, a.turns) for a in before] == [(a.question_id, a.turns) for a in answers]:
        return
    for judged in (folder / "model_judgment").glob("*.jsonl"):
        rows = [row for _, row in read_jsonl(judged, "MT-Bench judgment", whole=False)]
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


@dataclass(frozen=True)
class Judging:
    """Who judges, on which questions, with which reference answers ({question_id: its turns}).

    Judgments go to FastChat's files in ``folder`` (None: nowhere), and those already there are kept.
    """

    judge: Judge
    questions: Sequence[Question]
    references: Mapping[int, tuple[str, ...]]
    folder: Path | None

    def rate(self, models: Sequence[Answers]) -> Judged[Judgment]:
        """Of every answered turn; those without an answer are among the failures."""
        path = self.folder and fastchat.judgment_path(self.folder, self.judge.label)
        found = _there(path, fastchat.load_judgments)
        failed: dict[tuple, str] = {(a.name, turn): why for a in models for turn, why in a.failed.items()}
        wanted = [(answers, turn) for answers in models for turn in self._answered(answers)]
        requests: dict[tuple, Rating] = {(a.name, t): Rating(self._shown(a, t), self._known(t)) for a, t in wanted}
        todo = [place for place in requests if place not in found or found[place].failed]
        verdicts = self.judge.rate([requests[place] for place in todo])
        for (model, turn), verdict in zip(todo, verdicts, strict=True):
            if verdict.error is not None:
                failed[model, turn] = verdict.error
            score = FAILED_SCORE if verdict.value is None else verdict.value
            found[model, turn] = Judgment(
                turn[0], model, self._by(turn, "single"), PROMPT_LEFT_OUT, verdict.raw, score, turn[1], time.time()
            )
        return _kept(path, found, requests), failed

    def compare(self, pairs: Sequence[tuple[Answers, Answers]]) -> Judged[PairJudgment]:
        """Both orders of every turn that both models of a pair answered."""
        path = self.folder and fastchat.judgment_path(self.folder, self.judge.label, "pair")
        found = _there(path, fastchat.load_pair_judgments)
        before = {place[:2] for place in found}
        pairs = [(b, a) if (b.name, a.name) in before else (a, b) for a, b in pairs]  # both orders are the same pair
        requests: dict[tuple, Comparison] = {
            (a.name, b.name, turn): Comparison(self._shown(a, turn), self._shown(b, turn), self._known(turn))
            for a, b in pairs
            for turn in self._answered(a)
            if b.turn(*turn) is not None
        }
        for first, second, turn in requests.keys() - found.keys():
            judge, left_out = self._by(turn, "pair"), PROMPT_LEFT_OUT
            found[first, second, turn] = PairJudgment(
                turn[0], first, second, "error", "error", judge, left_out, "", left_out, "", turn[1], time.time()
            )
        games = [
            (place, order)
            for place in requests
            for order in ("g1", "g2")
            if getattr(found[place], f"{order}_winner") == "error"
        ]
        shown = [requests[place] if order == "g1" else requests[place].swapped for place, order in games]
        failed = defaultdict(list)
        for (place, order), verdict in zip(games, self.judge.compare(shown), strict=True):
            said = {f"{order}_winner": _winner(order, verdict), f"{order}_judgment": verdict.raw}
            found[place] = replace(found[place], tstamp=time.time(), **said)
            if verdict.error is not None:
                failed[place].append(f"{order}: {verdict.error}")
        return _kept(path, found, requests), {place: "; ".join(reasons) for place, reasons in failed.items()}

    def _answered(self, answers: Answers) -> Iterator[Turn]:
        turns = ((q.question_id, turn) for q in self.questions for turn in range(1, len(q.turns) + 1))
        return (turn for turn in turns if answers.turn(*turn) is not None)

    def _shown(self, answers: Answers, turn: Turn) -> Conversation:
        question = next(q for q in self.questions if q.question_id == turn[0])
        return conversation(question, answers.turns[turn[0]], turn[1], answered=True)

    def _known(self, turn: Turn) -> tuple[str, ...]:
        return tuple(self.references.get(turn[0], ()))[: turn[1]]

    def _by(self, turn: Turn, mode: Literal["single", "pair"]) -> tuple[str, str]:
        """The judge, and FastChat's name of what it is asked."""
        return self.judge.label, fastchat.prompt_name(turn[1], reference=bool(self._known(turn)), mode=mode)


def _there(path: Path | None, load: Callable[[Path], list[J]]) -> dict[tuple, J]:
    judgments = load(path) if path and path.is_file() else []
    return {(*j.models, (j.question_id, j.turn)): j for j in judgments}


def _kept(path: Path | None, found: Mapping[tuple, J], wanted: Iterable[tuple]) -> dict[tuple, J]:
    """Write all judgments, those that are wanted now at the end; returns the latter."""
    now = {place: found[place] for place in wanted}
    judgments = [*(j for place, j in found.items() if place not in now), *now.values()]
    if path and judgments:
        fastchat.write_judgments(path, judgments)
    return now


def _winner(order: str, verdict: Verdict) -> Winner:
    """Of a game that shows model 1 first (g1) or second (g2)."""
    if verdict.value is None:
        return "error"
    if verdict.value == TIE:
        return "tie"
    return "model_1" if (verdict.value < TIE) == (order == "g1") else "model_2"
