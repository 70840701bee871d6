"""FastChat's MT-Bench files: questions, model answers and judgments. FastChat itself is not imported.

A judgment is a rating of one answer, or which of two models answered better, asked in both orders. Formats as in
fastchat/llm_judge/{common,gen_model_answer,gen_judgment,show_result}.py of fschat 0.2.36.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from harness.files import read_jsonl, write_jsonl

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""FastChat's sampling temperature of each MT-Bench category (llm_judge/common.py)."""
FAILED_SCORE = -1
"""FastChat's mark for a judgment without a rating; its show_result drops these rows."""

Winner = Literal["model_1", "model_2", "tie", "error"]
"""``error``: the judge gave no verdict that can be read."""


@dataclass(frozen=True)
class Question:
    """One MT-Bench question: two user turns."""

    question_id: int
    category: str
    turns: tuple[str, str]


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answers to the turns of one question."""

    question_id: int
    answer_id: str
    model_id: str
    turns: tuple[str, ...]
    tstamp: float

    def to_row(self) -> dict[str, Any]:
        return {
            "question_id": self.question_id,
            "answer_id": self.answer_id,
            "model_id": self.model_id,
            "choices": [{"index": 0, "turns": list(self.turns)}],
            "tstamp": self.tstamp,
        }


def load_questions(path: str | Path) -> list[Question]:
    """Read a question.jsonl; raises ValueError with file:line for a malformed or repeated question."""
    questions: dict[int, Question] = {}
    for number, row in read_jsonl(path, "MT-Bench question"):
        question = _question(row, f"{path}:{number}")
        if question.question_id in questions:
            raise ValueError(f"{path}:{number}: question_id {question.question_id} occurs twice")
        questions[question.question_id] = question
    return list(questions.values())


def load_answers(path: str | Path) -> list[ModelAnswer]:
    """Read a model's answer file or a reference answer file (the same format)."""
    return [_answer(row, f"{path}:{number}") for number, row in read_jsonl(path, "MT-Bench answer")]


def load_model_answers(folder: str | Path) -> dict[str, list[ModelAnswer]]:
    """{model: its answers} of all files of a ``model_answer`` folder; the file's name is the model's, as in FastChat.

    Raises ValueError for a folder without answers, and for a question that a model answers twice.
    """
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise ValueError(f"{folder} is no folder of answers: it has no .jsonl file (one for each model)")
    found = {file.stem: load_answers(file) for file in files}
    for file, answers in zip(files, found.values(), strict=True):
        ids = [answer.question_id for answer in answers]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"{file}: question_id {twice} is answered twice; keep one of the answers")
    return found


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write a question.jsonl, which FastChat's qa_browser looks for beside the answers."""
    write_jsonl(path, ({**vars(question), "turns": list(question.turns)} for question in questions))


def write_answers(path: str | Path, answers: Iterable[ModelAnswer]) -> None:
    """Write one model's answer file (FastChat takes the model's name from the file name)."""
    write_jsonl(path, (answer.to_row() for answer in answers))


def answer_path(folder: Path, model_id: str) -> Path:
    """Where FastChat looks for a model's answers below a benchmark's folder."""
    return folder / "model_answer" / f"{file_name(model_id)}.jsonl"


def file_name(name: str) -> str:
    """A model's or judge's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._@+-]", "_", name)


@dataclass(frozen=True)
class Judgment:
    """A judge's rating of one turn; ``score`` is `FAILED_SCORE` where the raw text ``judgment`` has none."""

    question_id: int
    model: str
    judge: tuple[str, str]
    user_prompt: str
    judgment: str
    score: float
    turn: int
    tstamp: float

    @property
    def failed(self) -> bool:
        return self.score == FAILED_SCORE


@dataclass(frozen=True)
class PairJudgment:
    """A judge's word on two models' answers to one turn: game 1 shows model_1 first, game 2 shows model_2 first."""

    question_id: int
    model_1: str
    model_2: str
    g1_winner: Winner
    g2_winner: Winner
    judge: tuple[str, str]
    g1_user_prompt: str
    g1_judgment: str
    g2_user_prompt: str
    g2_judgment: str
    turn: int
    tstamp: float

    @property
    def failed(self) -> bool:
        """Without a verdict in either order; show_result drops these rows."""
        return "error" in (self.g1_winner, self.g2_winner)

    @property
    def winner(self) -> Winner:
        """FastChat's rule: who wins in both orders wins, everything else is a tie (and a failure is an error)."""
        if self.failed:
            return "error"
        return self.g1_winner if self.g1_winner == self.g2_winner else "tie"

    def win_rate(self, model: str) -> float:
        """100, 50 or 0 for one of the two models; ValueError for a failure or another model."""
        if self.failed or model not in (self.model_1, self.model_2):
            raise ValueError(f"question {self.question_id}, turn {self.turn}: no verdict about {model!r}")
        if self.winner == "tie":
            return 50.0
        return 100.0 if (self.model_1 if self.winner == "model_1" else self.model_2) == model else 0.0


AnyJudgment = TypeVar("AnyJudgment", Judgment, PairJudgment)


def load_judgments(path: str | Path) -> list[Judgment]:
    """Read a single-grading judgment file; ValueError with file:line for what is not one."""
    return [_judgment(row, f"{path}:{number}") for number, row in read_jsonl(path, "MT-Bench judgment")]


def load_pair_judgments(path: str | Path) -> list[PairJudgment]:
    """Read a file of pairwise judgments; ValueError with file:line for what is not one."""
    return [_pair(row, f"{path}:{number}") for number, row in read_jsonl(path, "MT-Bench judgment")]


def is_pair_file(path: str | Path) -> bool:
    """Whether a judgment file compares models (then its first row names two)."""
    return "model_1" in read_jsonl(path, "MT-Bench judgment")[0][1]


def write_judgments(path: str | Path, judgments: Iterable[Judgment] | Iterable[PairJudgment]) -> None:
    """Write a judgment file of either kind."""
    write_jsonl(path, ({**vars(judgment), "judge": list(judgment.judge)} for judgment in judgments))


def judgment_path(folder: Path, judge: str, mode: Literal["single", "pair"] = "single") -> Path:
    """Where FastChat looks for a judge's judgments below a benchmark's folder."""
    return folder / "model_judgment" / f"{file_name(judge)}_{mode}.jsonl"


def prompt_name(turn: int, *, reference: bool, mode: Literal["single", "pair"] = "single") -> str:
    """FastChat's name of the kind of judging: second turns and answers with a reference have their own."""
    plain = "single-v1" if mode == "single" else "pair-v2"
    return f"{f'{mode}-math-v1' if reference else plain}{'-multi-turn' if turn == 2 else ''}"


def _question(row: dict[str, Any], place: str) -> Question:
    turns = row.get("turns")
    if not isinstance(row.get("question_id"), int):
        raise ValueError(f"{place}: 'question_id' must be an integer, got {row.get('question_id')!r}")
    if not isinstance(row.get("category"), str) or not row["category"]:
        raise ValueError(f"{place}: 'category' must be a non-empty string, got {row.get('category')!r}")
    if not isinstance(turns, list) or not _texts(turns) or len(turns) != 2 or not all(map(str.strip, turns)):
        raise ValueError(f"{place}: 'turns' must be a list of two non-empty strings, got {turns!r}")
    return Question(row["question_id"], row["category"], (turns[0], turns[1]))


def _answer(row: dict[str, Any], place: str) -> ModelAnswer:
    try:
        turns = row["choices"][0]["turns"]
        answer = ModelAnswer(
            row["question_id"], str(row["answer_id"]), str(row["model_id"]), tuple(turns), float(row["tstamp"])
        )
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise ValueError(
            f"{place}: not an MT-Bench answer (question_id, answer_id, model_id, choices[0].turns, tstamp): {problem!r}"
        ) from None
    if not _texts(turns):
        raise ValueError(f"{place}: choices[0].turns must be a list of strings, got {turns!r}")
    return answer


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _judgment(row: dict[str, Any], place: str) -> Judgment:
    values = _values(Judgment, row, place)
    score = row["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not (score == FAILED_SCORE or 0 <= score <= 10):
        raise ValueError(f"{place}: 'score' must be 0..10, or {FAILED_SCORE} for a failure; got {score!r}")
    return Judgment(**values)


def _pair(row: dict[str, Any], place: str) -> PairJudgment:
    values = _values(PairJudgment, row, place)
    for key in ("g1_winner", "g2_winner"):
        if row[key] not in get_args(Winner):
            raise ValueError(f"{place}: {key!r} must be one of {', '.join(get_args(Winner))}; got {row[key]!r}")
    return PairJudgment(**values)


def _values(kind: type[AnyJudgment], row: dict[str, Any], place: str) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    missing = [name for name in names if name not in row]
    if missing:
        raise ValueError(f"{place}: not an MT-Bench judgment of this kind, missing {', '.join(missing)}")
    if not isinstance(row["question_id"], int):
        raise ValueError(f"{place}: 'question_id' must be an integer, got {row['question_id']!r}")
    for name in ("model", "model_1", "model_2"):
        if name in names and not isinstance(row[name], str):
            raise ValueError(f"{place}: {name!r} must be a string, got {row[name]!r}")
    if not isinstance(row["judge"], list) or len(row["judge"]) != 2:
        raise ValueError(f"{place}: 'judge' must be [judge, prompt name], got {row['judge']!r}")
    if row["turn"] not in (1, 2):
        raise ValueError(f"{place}: 'turn' must be 1 or 2, got {row['turn']!r}")
    return {name: row[name] for name in names} | {"judge": cast(tuple[str, str], tuple(row["judge"]))}
