"""FastChat's MT-Bench files: questions and model answers (judgments: fastchat_judgments). FastChat is not imported.

Formats as in fastchat/llm_judge/{common,gen_model_answer}.py of fschat 0.2.36.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
