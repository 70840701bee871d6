"""FastChat's MT-Bench files: questions, model answers, judgments. FastChat itself is not imported.

Formats as in fastchat/llm_judge/{common,gen_model_answer,gen_judgment}.py of fschat 0.2.36.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import read_jsonl, write_jsonl

FAILED_SCORE = -1
"""FastChat's mark for a judgment without a rating; its show_result drops these rows."""

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

    def to_row(self) -> dict[str, Any]:
        return {**vars(self), "judge": list(self.judge)}


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


def load_judgments(path: str | Path) -> list[Judgment]:
    """Read a single-grading judgment file."""
    return [_judgment(row, f"{path}:{number}") for number, row in read_jsonl(path, "MT-Bench judgment")]


def write_answers(path: str | Path, answers: Iterable[ModelAnswer]) -> None:
    """Write one model's answer file (FastChat takes the model's name from the file name)."""
    write_jsonl(path, (answer.to_row() for answer in answers))


def write_judgments(path: str | Path, judgments: Iterable[Judgment]) -> None:
    """Write a single-grading judgment file."""
    write_jsonl(path, (judgment.to_row() for judgment in judgments))


def answer_path(folder: Path, model_id: str) -> Path:
    """Where FastChat looks for a model's answers below a benchmark's folder."""
    return folder / "model_answer" / f"{_file_name(model_id)}.jsonl"


def judgment_path(folder: Path, judge: str) -> Path:
    """Where FastChat looks for single-grading judgments below a benchmark's folder."""
    return folder / "model_judgment" / f"{_file_name(judge)}_single.jsonl"


def prompt_name(turn: int, *, reference: bool) -> str:
    """FastChat's name of the kind of grading: second turns and answers with a reference have their own."""
    return f"single-{'math-' if reference else ''}v1{'-multi-turn' if turn == 2 else ''}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@+-]", "_", name)


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
            row["question_id"],
            str(row["answer_id"]),
            str(row["model_id"]),
            tuple(turns),
            float(row["tstamp"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise ValueError(
            f"{place}: not an MT-Bench answer (question_id, answer_id, model_id, choices[0].turns, tstamp): {problem!r}"
        ) from None
    if not _texts(turns):
        raise ValueError(f"{place}: choices[0].turns must be a list of strings, got {turns!r}")
    return answer


def _judgment(row: dict[str, Any], place: str) -> Judgment:
    missing = [key for key in Judgment.__annotations__ if key not in row]
    if missing:
        raise ValueError(f"{place}: not an MT-Bench judgment, missing {', '.join(missing)}")
    score, judge, turn = row["score"], row["judge"], row["turn"]
    if not isinstance(score, int | float) or not (score == FAILED_SCORE or 0 <= score <= 10):
        raise ValueError(f"{place}: 'score' must be 0..10, or {FAILED_SCORE} for a failure; got {score!r}")
    if not isinstance(judge, list) or len(judge) != 2:
        raise ValueError(f"{place}: 'judge' must be [judge, prompt name], got {judge!r}")
    if turn not in (1, 2):
        raise ValueError(f"{place}: 'turn' must be 1 or 2, got {turn!r}")
    values: dict[str, Any] = {key: row[key] for key in Judgment.__annotations__}
    values["judge"] = tuple(judge)
    return Judgment(**values)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
