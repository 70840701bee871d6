"""FastChat's MT-Bench files: questions, model answers and judgments. FastChat itself is not imported.

A judgment is a rating of one answer, or which of two models answered better, asked in both orders. Formats as in
fastchat/llm_judge/{common,gen_model_answer,gen_judgment,show_result}.py of fschat 0.2.36.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt

from harness.files import Number, Text, Words, checked, read_jsonl, write_jsonl

TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
"""FastChat's sampling temperature of each MT-Bench category (llm_judge/common.py)."""
FAILED_SCORE = -1
"""FastChat's mark for a judgment without a rating; its show_result drops these rows."""

Winner = Annotated[
    Literal["model_1", "model_2", "tie", "error"], "one of model_1, model_2, tie, error (no verdict that can be read)"
]
QuestionId = Annotated[StrictInt, "an integer"]
JudgeName = Annotated[tuple[Text, Text], "[judge, prompt name]"]
Turn = Annotated[Literal[1, 2], "1 or 2"]


def _rating(score: float) -> float:
    if score != FAILED_SCORE and not 0 <= score <= 10:
        raise ValueError
    return score


@dataclass(frozen=True)
class Question:
    """One question: two user turns as in MT-Bench, or one as in FastChat's vicuna_bench."""

    question_id: QuestionId
    category: Words
    turns: Annotated[tuple[Words, ...], Field(min_length=1, max_length=2), "a list of one or two non-empty strings"]


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answers to the turns of one question."""

    question_id: QuestionId
    answer_id: Annotated[str, BeforeValidator(str), "a string"]
    model_id: Annotated[str, BeforeValidator(str), "a string"]
    turns: Annotated[tuple[Text, ...], Field(min_length=1), "a list of strings"]
    tstamp: Annotated[float, "a number"]


def load_questions(path: str | Path) -> list[Question]:
    """Read a question.jsonl; raises ValueError with file:line for a malformed or repeated question."""
    questions: dict[int, Question] = {}
    for number, row in read_jsonl(path, "MT-Bench question"):
        question = checked(Question, row, f"{path}:{number}")
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
    found = {}
    for file in files:
        found[file.stem] = load_answers(file)
        question_id, times = Counter(answer.question_id for answer in found[file.stem]).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{file}: question_id {question_id} is answered twice; keep one of the answers")
    return found


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write a question.jsonl, which FastChat's qa_browser looks for beside the answers."""
    write_jsonl(path, ({**vars(question), "turns": list(question.turns)} for question in questions))


def write_answers(path: str | Path, answers: Iterable[ModelAnswer]) -> None:
    """Write one model's answer file (FastChat takes the model's name from the file name)."""
    rows = [vars(answer) | {"choices": [{"index": 0, "turns": list(answer.turns)}]} for answer in answers]
    columns = ("question_id", "answer_id", "model_id", "choices", "tstamp")
    write_jsonl(path, ({column: row[column] for column in columns} for row in rows))


def answer_path(folder: Path, model_id: str) -> Path:
    """Where FastChat looks for a model's answers below a benchmark's folder."""
    return folder / "model_answer" / f"{file_name(model_id)}.jsonl"


def file_name(name: str) -> str:
    """A model's or judge's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._@+-]", "_", name)


@dataclass(frozen=True)
class Judgment:
    """A judge's rating of one turn; ``score`` is `FAILED_SCORE` where the raw text ``judgment`` has none."""

    question_id: QuestionId
    model: Text
    judge: JudgeName
    user_prompt: Text
    judgment: Text
    score: Annotated[Number, AfterValidator(_rating), f"0..10, or {FAILED_SCORE} for a failure"]
    turn: Turn
    tstamp: Number

    @property
    def models(self) -> tuple[str]:
        return (self.model,)

    @property
    def failed(self) -> bool:
        return self.score == FAILED_SCORE


@dataclass(frozen=True)
class PairJudgment:
    """A judge's word on two models' answers to one turn: game 1 shows model_1 first, game 2 shows model_2 first."""

    question_id: QuestionId
    model_1: Text
    model_2: Text
    g1_winner: Winner
    g2_winner: Winner
    judge: JudgeName
    g1_user_prompt: Text
    g1_judgment: Text
    g2_user_prompt: Text
    g2_judgment: Text
    turn: Turn
    tstamp: Number

    @property
    def models(self) -> tuple[str, str]:
        return (self.model_1, self.model_2)

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


def load_judgments(path: str | Path) -> list[Judgment]:
    """Read a file of ratings; ValueError with file:line for what is not one."""
    return [
        checked(Judgment, row, f"{path}:{number}") for number, row in read_jsonl(path, "MT-Bench judgment", whole=False)
    ]


def load_pair_judgments(path: str | Path) -> list[PairJudgment]:
    """Read a file of pairwise judgments; ValueError with file:line for what is not one."""
    return [
        checked(PairJudgment, row, f"{path}:{number}")
        for number, row in read_jsonl(path, "MT-Bench judgment", whole=False)
    ]


def is_pair_file(path: str | Path) -> bool:
    """Whether a judgment file compares models (then its first row names two)."""
    return "model_1" in read_jsonl(path, "MT-Bench judgment", whole=False)[0][1]


def write_judgments(path: str | Path, judgments: Iterable[Judgment | PairJudgment]) -> None:
    """Write a judgment file of either kind."""
    write_jsonl(path, ({**vars(judgment), "judge": list(judgment.judge)} for judgment in judgments))


def judgment_path(folder: Path, judge: str, mode: Literal["single", "pair"] = "single") -> Path:
    """Where FastChat looks for a judge's judgments below a benchmark's folder."""
    return folder / "model_judgment" / f"{file_name(judge)}_{mode}.jsonl"


def prompt_name(turn: int, *, reference: bool, mode: Literal["single", "pair"] = "single") -> str:
    """FastChat's name of the kind of judging: second turns and answers with a reference have their own."""
    plain = "single-v1" if mode == "single" else "pair-v2"
    return f"{f'{mode}-math-v1' if reference else plain}{'-multi-turn' if turn == 2 else ''}"


def _answer(row: dict[str, Any], place: str) -> ModelAnswer:
    try:
        turns = row["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{place}: not an MT-Bench answer, missing choices[0].turns") from None
    return checked(ModelAnswer, row | {"turns": turns}, place)
