"""MT-Bench: two-turn questions, each category at its temperature, each turn rated 1-10 by a judge."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat

from harness.adapters import fastchat
from harness.adapters.fastchat import Judgment, ModelAnswer, Question
from harness.benchmark import BenchmarkConfig, Record, register_benchmark
from harness.judges import Judge, Rating
from harness.preferences import Conversation, Message

if TYPE_CHECKING:
    from harness.model import AlignedModel

Turn = tuple[int, int]
"""(question_id, 1 or 2)."""


@register_benchmark("mt_bench")
class MTBench(BenchmarkConfig):
    """FastChat's MT-Bench with single-answer grading; metric ``mt_bench``: each turn of each question, 1-10.

    The folder receives model_answer/<model>.jsonl and model_judgment/<judge>_single.jsonl, FastChat's
    formats. An answer file found there that is complete and made by the same model with the same settings
    is used again, and its judgments too, except failed ones: those are asked for anew.
    """

    questions: Path = Field(description="FastChat's question.jsonl: question_id, category, turns")
    references: Path | None = Field(None, description="reference answers, in FastChat's answer format")
    temperatures: NonNegativeFloat | dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="one for all, or by category; FastChat's own where none is given"
    )
    max_new_tokens: int = Field(1024, ge=1, description="tokens per turn")
    batch_size: int = Field(64, ge=1, description="conversations generated together")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("mt_bench",)

    def check(self) -> None:
        """Read all files; also raises ValueError for a category without a temperature."""
        for question in self._questions:
            self._temperature(question)
        _ = self._references

    def prompts(self) -> list[str]:
        return [turn for question in self._questions for turn in question.turns]

    def run(
        self, model: "AlignedModel", *, judge: "Judge | None", seed: int, folder: Path | None = None
    ) -> Iterator[Record]:
        if judge is None:
            raise ValueError("benchmark 'mt_bench' needs a judge; add `judge:` to the suite")
        answers = self._finished_answers(model, seed, folder)
        known: list[Judgment] = []
        failed: dict[Turn, str] = {}
        if answers is None:
            answers, failed = self._generate(model, seed)
            if folder is not None:
                # Judgments always belong to the answers that are there, so old ones, whoever made them, go first.
                shutil.rmtree(fastchat.judgment_path(folder, judge.label).parent, ignore_errors=True)
                fastchat.write_answers(fastchat.answer_path(folder, _name(model)), answers)
        elif folder is not None and fastchat.judgment_path(folder, judge.label).is_file():
            judgments = fastchat.load_judgments(fastchat.judgment_path(folder, judge.label))
            known = [j for j in judgments if j.model == _name(model)]
        judgments, unjudged = self._judge(answers, judge, known)
        if folder is not None:
            fastchat.write_judgments(fastchat.judgment_path(folder, judge.label), judgments)
        yield from self._records(answers, judgments, failed | unjudged)

    @cached_property
    def _questions(self) -> list[Question]:
        return fastchat.load_questions(self.questions)

    @cached_property
    def _references(self) -> dict[int, tuple[str, ...]]:
        if self.references is None:
            return {}
        return {answer.question_id: answer.turns for answer in fastchat.load_answers(self.references)}

    def _temperature(self, question: Question) -> float:
        if not isinstance(self.temperatures, dict):
            return self.temperatures
        known = fastchat.TEMPERATURES | self.temperatures
        if question.category not in known:
            raise ValueError(
                f"{self.questions}: category {question.category!r} of question {question.question_id} has no "
                f"temperature; give it in `temperatures:` (known: {', '.join(sorted(known))})"
            )
        return known[question.category]

    def _answer_id(self, model: "AlignedModel", question: Question, seed: int) -> str:
        """Identity of an answer: the model and everything its generation depends on."""
        settings = [model.fingerprint, self._temperature(question), self.max_new_tokens, seed, question.turns]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:22]

    def _finished_answers(self, model: "AlignedModel", seed: int, folder: Path | None) -> list[ModelAnswer] | None:
        """The answers of an earlier run with this model, these questions and settings, if all are there."""
        if folder is None or not fastchat.answer_path(folder, _name(model)).is_file():
            return None
        answers = fastchat.load_answers(fastchat.answer_path(folder, _name(model)))
        wanted = [self._answer_id(model, question, seed) for question in self._questions]
        if [a.answer_id for a in answers] != wanted or any(len(a.turns) != 2 for a in answers):
            return None
        return answers

    def _generate(self, model: "AlignedModel", seed: int) -> tuple[list[ModelAnswer], dict[Turn, str]]:
        """Answers to both turns, and why a turn has none (its conversation does not fit the context)."""
        turns: dict[int, tuple[str, ...]] = {q.question_id: () for q in self._questions}
        failed: dict[Turn, str] = {}
        for turn in (1, 2):
            asked = [q for q in self._questions if len(turns[q.question_id]) == turn - 1]
            completions = model.generate(
                [_conversation(q, turns[q.question_id], turn) for q in asked],
                max_new_tokens=self.max_new_tokens,
                temperature=[self._temperature(q) for q in asked],
                seed=seed,
                batch_size=self.batch_size,
            )
            for question, completion in zip(asked, completions, strict=True):
                if completion.error is None:
                    turns[question.question_id] += (completion.text,)
                else:
                    for unanswered in range(turn, 3):
                        reason = f"no answer to turn {turn}: {completion.error}"
                        failed[question.question_id, unanswered] = reason
        answers = [
            ModelAnswer(
                q.question_id,
                self._answer_id(model, q, seed),
                _name(model),
                turns[q.question_id],
                time.time(),
            )
            for q in self._questions
            if turns[q.question_id]
        ]
        return answers, failed

    def _judge(
        self, answers: Sequence[ModelAnswer], judge: Judge, known: Sequence[Judgment]
    ) -> tuple[list[Judgment], dict[Turn, str]]:
        """A judgment of every answered turn, and the reasons of those without a score."""
        questions = {q.question_id: q for q in self._questions}
        done = {(j.question_id, j.turn): j for j in known if not j.failed}
        turns = [(a, turn) for a in answers for turn in range(1, len(a.turns) + 1)]
        todo = [(a, turn) for a, turn in turns if (a.question_id, turn) not in done]
        requests = [
            Rating(
                _conversation(questions[a.question_id], a.turns, turn, answered=True),
                self._references.get(a.question_id, ())[:turn],
            )
            for a, turn in todo
        ]
        failed: dict[Turn, str] = {}
        for (answer, turn), request, verdict in zip(todo, requests, judge.rate(requests), strict=True):
            if verdict.error is not None:
                failed[answer.question_id, turn] = verdict.error
            done[answer.question_id, turn] = Judgment(
                question_id=answer.question_id,
                model=answer.model_id,
                judge=(judge.label, fastchat.prompt_name(turn, reference=bool(request.references))),
                user_prompt=verdict.prompt,
                judgment=verdict.raw,
                score=fastchat.FAILED_SCORE if verdict.value is None else verdict.value,
                turn=turn,
                tstamp=time.time(),
            )
        return [done[a.question_id, turn] for a, turn in turns], failed

    def _records(
        self, answers: Sequence[ModelAnswer], judgments: Sequence[Judgment], failed: dict[Turn, str]
    ) -> Iterator[Record]:
        answered = {a.question_id: a.turns for a in answers}
        judged = {(j.question_id, j.turn): j for j in judgments}
        for question in self._questions:
            for turn in (1, 2):
                key = (question.question_id, turn)
                judgment, reason = judged.get(key), failed.get(key)
                assert reason is not None or judgment is not None
                yield Record(
                    item=f"{question.question_id}:{turn}",
                    cluster=str(question.question_id),
                    metric="mt_bench",
                    value=None if reason is not None or judgment is None else float(judgment.score),
                    error=reason,
                    raw={
                        "category": question.category,
                        "turn": turn,
                        "temperature": self._temperature(question),
                        "prompt": question.turns[turn - 1],
                        "answer": _of_turn(answered.get(question.question_id), turn),
                        "judge": None if judgment is None else judgment.judge[0],
                        "judgment": None if judgment is None else judgment.judgment,
                    },
                )


def _name(model: "AlignedModel") -> str:
    return f"{model.method}-{model.fingerprint[:12]}"


def _conversation(question: Question, answers: Sequence[str], turn: int, *, answered: bool = False) -> Conversation:
    """The dialogue up to the user's turn ``turn``, or (``answered``) up to the model's answer to it."""
    messages: list[Message] = []
    for user, answer in zip(question.turns[:turn], (*answers[:turn], ""), strict=False):
        messages += [Message(role="user", content=user), Message(role="assistant", content=answer)]
    return tuple(messages if answered else messages[:-1])


def _of_turn(turns: Sequence[str] | None, turn: int) -> str | None:
    """The entry of one turn, where there is one (FastChat has references for some categories only)."""
    return None if turns is None or len(turns) < turn else turns[turn - 1]
