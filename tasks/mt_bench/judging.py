"""Judgments of answers: each rated by itself, or two models' compared in both orders; good ones are kept."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.evaluators.fastchat.files import (
    FAILED_SCORE,
    Judgment,
    PairJudgment,
    Question,
    Winner,
    judgment_path,
    load_judgments,
    load_pair_judgments,
    prompt_name,
    write_judgments,
)
from harness.judging import Comparison, Judge, Rating, Verdict
from tasks.mt_bench.answers import Answers, Turn, conversation

PROMPT_LEFT_OUT = ""
"""In a judgment's ``user_prompt``: it would hold the answer once more, which is beside it in its own file."""
TIE = 1.5
"""A preference of 1 (first) to 2 (second) on this mark is a tie."""


@dataclass(frozen=True)
class Judging:
    """Who judges, on which questions, with which reference answers ({question_id: its turns}).

    Judgments go to FastChat's files in ``folder`` (None: nowhere), and those already there are kept.
    """

    judge: Judge
    questions: Sequence[Question]
    references: Mapping[int, tuple[str, ...]]
    folder: Path | None

    def rate(self, models: Sequence[Answers]) -> tuple[dict[str, dict[Turn, Judgment]], dict[str, dict[Turn, str]]]:
        """{model: {turn: judgment}} of every answered turn, and {model: {turn: why it has no score}}."""
        path = self.folder and judgment_path(self.folder, self.judge.label)
        there = load_judgments(path) if path and path.is_file() else []
        done = {(j.model, (j.question_id, j.turn)): j for j in there if not j.failed}
        wanted = [(answers, key) for answers in models for key in self._answered(answers)]
        todo = [(answers, key) for answers, key in wanted if (answers.name, key) not in done]
        requests = [Rating(self._shown(answers, key), self._known(key)) for answers, key in todo]
        failed: dict[str, dict[Turn, str]] = {answers.name: dict(answers.failed) for answers in models}
        for (answers, key), request, verdict in zip(todo, requests, self.judge.rate(requests), strict=True):
            if verdict.error is not None:
                failed[answers.name][key] = verdict.error
            done[answers.name, key] = Judgment(
                question_id=key[0],
                model=answers.name,
                judge=(self.judge.label, prompt_name(key[1], reference=bool(request.references))),
                user_prompt=PROMPT_LEFT_OUT,
                judgment=verdict.raw,
                score=FAILED_SCORE if verdict.value is None else verdict.value,
                turn=key[1],
                tstamp=time.time(),
            )
        found = {a.name: {key: done[a.name, key] for key in self._answered(a)} for a in models}
        others = [j for j in there if j.model not in found]
        kept = [*others, *(j for of_model in found.values() for j in of_model.values())]
        if path and kept:
            write_judgments(path, kept)
        return found, failed

    def compare(self, pairs: Sequence[tuple[Answers, Answers]]) -> "Compared":
        """Both orders of every turn that both models of a pair answered."""
        path = self.folder and judgment_path(self.folder, self.judge.label, "pair")
        there = load_pair_judgments(path) if path and path.is_file() else []
        done = {_key(j): j for j in there}
        before = {(first, second) for first, second, _ in done}
        pairs = [(b, a) if (b.name, a.name) in before else (a, b) for a, b in pairs]  # both orders are the same pair
        wanted = [(a, b, key) for a, b in pairs for key in self._answered(a) if b.turn(*key) is not None]
        games = []
        for a, b, key in wanted:
            known = done.get((a.name, b.name, key))
            question = Comparison(self._shown(a, key), self._shown(b, key), self._known(key))
            for order, shown in (("g1", question), ("g2", question.swapped)):
                if known is None or getattr(known, f"{order}_winner") == "error":
                    games.append((a.name, b.name, key, order, shown))
        verdicts = self.judge.compare([shown for *_, shown in games])
        played = {(a, b, key, order): v for (a, b, key, order, _), v in zip(games, verdicts, strict=True)}
        found, failed = {}, {}
        for a, b, key in wanted:
            place = a.name, b.name, key
            new = {order: played[*place, order] for order in ("g1", "g2") if (*place, order) in played}
            found[place] = self._pair(place, done.get(place), new)
            reasons = [f"{order}: {v.error}" for order, v in new.items() if v.error is not None]
            if reasons:
                failed[place] = "; ".join(reasons)
        kept = [*(j for place, j in done.items() if place not in found), *found.values()]
        if path and kept:
            write_judgments(path, kept)
        return Compared(found, failed)

    def _pair(
        self, place: tuple[str, str, Turn], known: PairJudgment | None, new: Mapping[str, Verdict]
    ) -> PairJudgment:
        """The games of ``known`` that were played, with the ``new`` ones in place of the others."""
        first, second, (question_id, turn) = place
        games: dict[str, str] = {}
        for order in ("g1", "g2"):
            if order in new:
                verdict = new[order]
                played = {"winner": _winner(order, verdict), "user_prompt": PROMPT_LEFT_OUT, "judgment": verdict.raw}
            else:
                played = {part: getattr(known, f"{order}_{part}") for part in ("winner", "user_prompt", "judgment")}
            games |= {f"{order}_{part}": value for part, value in played.items()}
        reference = bool(self._known((question_id, turn)))
        return PairJudgment(
            question_id=question_id,
            model_1=first,
            model_2=second,
            judge=(self.judge.label, prompt_name(turn, reference=reference, mode="pair")),
            turn=turn,
            tstamp=time.time() if new or known is None else known.tstamp,
            **games,  # type: ignore[arg-type]
        )

    def _answered(self, answers: Answers) -> Iterator[Turn]:
        for question in self.questions:
            for turn in (1, 2):
                if answers.turn(question.question_id, turn) is not None:
                    yield question.question_id, turn

    def _shown(self, answers: Answers, key: Turn) -> tuple:
        question = next(q for q in self.questions if q.question_id == key[0])
        return conversation(question, answers.turns[key[0]], key[1], answered=True)

    def _known(self, key: Turn) -> tuple[str, ...]:
        return tuple(self.references.get(key[0], ()))[: key[1]]


@dataclass(frozen=True)
class Compared:
    """{(model 1, model 2, turn): judgment}, and why a turn has no verdict in one order or in both."""

    judgments: Mapping[tuple[str, str, Turn], PairJudgment]
    failed: Mapping[tuple[str, str, Turn], str]


def _key(judgment: PairJudgment) -> tuple[str, str, Turn]:
    return judgment.model_1, judgment.model_2, (judgment.question_id, judgment.turn)


def _winner(order: str, verdict: Verdict) -> Winner:
    """Of a game that shows model 1 first (g1) or second (g2)."""
    if verdict.value is None:
        return "error"
    if verdict.value == TIE:
        return "tie"
    return "model_1" if (verdict.value < TIE) == (order == "g1") else "model_2"
