"""The benchmark `mt_bench`: what a suite may set, and the records that come out."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from harness.benchmark import Item, Metric, PromptBenchmark, Record, Sample, filled, register_benchmark
from harness.data import data_file, data_folder
from harness.data.refs import InputPath
from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import Question
from harness.judging import Judge, Verb
from harness.responder import Responder
from tasks.mt_bench.judging import Answers, Judging, Turn, conversation, keep_answers
from tasks.questions import asked_of, evenly, titled

Mode = Literal["single", "pairwise-baseline"]
_SAMPLE = Sample(heading="MT-Bench question {cluster} ({category}), turn {turn}", count=3, spread="category")
_METRICS: dict[Mode, Metric] = {
    "single": Metric(
        name="mt_bench", title="MT-Bench", unit="rating 1-10", digits=2, made_of="ratings", sample=_SAMPLE
    ),
    "pairwise-baseline": Metric(
        name="mt_bench_win", title="MT-Bench win rate", unit="%", made_of="verdicts", sample=_SAMPLE
    ),
}
_VERBS: dict[Mode, Verb] = {"single": "rate", "pairwise-baseline": "compare"}
_WIN = {"model_1": 100.0, "tie": 50.0, "model_2": 0.0}  # ours is model_1


@register_benchmark("mt_bench")
class MTBench(PromptBenchmark):
    """FastChat's MT-Bench; one record for each turn of each question in each of the ``modes``.

    ``single``: metric ``mt_bench``, the judge's rating from 1 to 10. ``pairwise-baseline``: metric ``mt_bench_win``,
    100 for a win over the baseline's answer in both orders, 0 for a loss in both, 50 for anything else.

    The folder receives question.jsonl, model_answer/<model>.jsonl and model_judgment/<judge>_{single,pair}.jsonl in
    FastChat's formats and places, but that judgments leave the judge's prompt out: it would repeat the answer, and no
    program of FastChat's reads it. Judgments found there of the same answers are used again, except failed ones: those
    are asked for anew.
    """

    model_config = filled("questions")

    questions: InputPath = Field(description="FastChat's question.jsonl; without it, that of the data folder")
    references: InputPath | None = Field(
        None, description="reference answers, in FastChat's format; for the data folder's questions GPT-4's by default"
    )
    limit: int | None = Field(
        None, ge=1, description="ask only so many of the questions, evenly spaced in the file; all unless given"
    )
    modes: tuple[Mode, ...] = Field(("single",), min_length=1, description="how answers are judged")
    baseline: InputPath | None = Field(
        None, description="answers to compare with, in FastChat's format; without it, those of the run's base model"
    )
    temperatures: NonNegativeFloat | dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="one for all, or by category; FastChat's own where none is given"
    )
    max_new_tokens: int = Field(1024, ge=1, description="tokens per turn")
    batch_size: int = Field(64, ge=1, description="conversations generated together")

    @model_validator(mode="before")
    @classmethod
    def _from_data_folder(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "questions" in values:
            return values
        folder = data_folder().absolute() / "mt_bench"
        return {"questions": folder / "question.jsonl", "references": folder / "reference_answer/gpt-4.jsonl"} | values

    @model_validator(mode="after")
    def _modes_fit(self) -> "MTBench":
        if len(set(self.modes)) < len(self.modes):
            raise ValueError("modes: a mode is given twice; give each once")
        if self.baseline is not None and "pairwise-baseline" not in self.modes:
            raise ValueError("baseline: nothing is compared with it; add `pairwise-baseline` to `modes`")
        return self

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(titled(_METRICS[mode], "MT-Bench", self._whose, self.limit) for mode in self.modes)

    @property
    def asks(self) -> frozenset[Verb]:
        return frozenset(_VERBS[mode] for mode in self.modes)

    def check(self) -> None:
        """Read all files; also raises ValueError for a category without a temperature."""
        data = data_folder().absolute()
        for path in (self.questions, self.references):
            if path is not None and path.is_relative_to(data):
                data_file(path.relative_to(data).as_posix(), "mt_bench")
        for question in self._all_questions:
            self._temperature(question)
        _ = self._references, self._baseline

    def prompts(self) -> list[str]:
        return [turn for question in self._questions for turn in question.turns]

    def items(self) -> list[Item]:
        """Whole questions: how long the second turn gets depends on the answer to the first, so both answers count with
        all the tokens that they may have."""
        return [
            Item(
                str(question.question_id),
                f"question {question.question_id}",
                conversation(question, [""] * len(question.turns), len(question.turns)),
                generated=self.max_new_tokens,
                rounds=len(question.turns),
            )
            for question in self._questions
        ]

    @property
    def verdicts(self) -> int:
        """Pairs are compared in both orders."""
        each = sum(1 if mode == "single" else 2 for mode in self.modes)
        return each * super().verdicts

    def run(
        self, model: Responder, *, judge: Judge | None, seed: int, folder: Path | None = None, export: bool = True
    ) -> Iterator[Record]:
        if judge is None:
            raise ValueError("benchmark 'mt_bench' needs a judge; add `judge:` to the suite")
        answers = self._ask(model, seed)
        compares = "pairwise-baseline" in self.modes
        baseline = self._baseline or self._ask(model.unaligned(), seed) if compares else None
        if folder is not None and export:
            keep_answers(folder, answers.name, answers.in_fastchats_format())
            if baseline is not None:
                given = fastchat.load_answers(self.baseline) if self.baseline else baseline.in_fastchats_format()
                keep_answers(folder, baseline.name, given)
        if folder is not None:
            fastchat.write_questions(folder / "question.jsonl", self._questions)
        judging = self.judging(judge, folder)
        if "single" in self.modes:
            yield from self._ratings(answers, judging)
        if baseline is not None:
            yield from self._wins(answers, baseline, judging)

    def judge_again(self, model: Responder, *, judge: Judge, seed: int, folder: Path | None = None) -> Iterator[Record]:
        """As `run`, without the answer files."""
        return self.run(model, judge=judge, seed=seed, folder=folder, export=False)

    def judging(self, judge: Judge, folder: Path | None) -> Judging:
        """How any model's answers to these questions are judged; judgments are kept in ``folder``."""
        return Judging(judge, self._questions, self._references, folder)

    @cached_property
    def _all_questions(self) -> list[Question]:
        return evenly(fastchat.load_questions(self.questions), self.limit, self.questions)

    @property
    def _questions(self) -> list[Question]:
        """Those that are asked."""
        return [question for question in self._all_questions if str(question.question_id) not in self._left_out]

    @cached_property
    def _whose(self) -> str | None:
        """Whose questions these are, where not FastChat's; None, too, where there is no file to tell from."""
        turns = (
            [turn for question in self._all_questions for turn in question.turns] if self.questions.is_file() else []
        )
        return asked_of("MT-Bench", turns)

    @cached_property
    def _references(self) -> dict[int, tuple[str, ...]]:
        if self.references is None:
            return {}
        return {answer.question_id: answer.turns for answer in fastchat.load_answers(self.references)}

    @cached_property
    def _baseline(self) -> Answers | None:
        if self.baseline is None:
            return None
        advice = f"a baseline must answer every turn of {self.questions}"
        return Answers.complete(self.baseline, fastchat.load_answers(self.baseline), self._questions, advice)

    def _temperature(self, question: Question) -> float:
        if not isinstance(self.temperatures, dict):
            return self.temperatures
        known = fastchat.TEMPERATURES | self.temperatures
        if question.category not in known:
            raise ValueError(
                f"{self.questions}: category {question.category!r} of question {question.question_id} has no "
                f"temperature; give it in `temperatures:` (FastChat takes 0.7; known: {', '.join(sorted(known))})"
            )
        return known[question.category]

    def _ask(self, model: Responder, seed: int) -> Answers:
        """Every turn of every question, a second one in the conversation that holds the first answer."""
        turns: dict[int, tuple[str, ...]] = {q.question_id: () for q in self._questions}
        failed: dict[Turn, str] = {}
        stored: dict[Turn, dict[str, str | None]] = {}
        for turn in (1, 2):
            asked = [q for q in self._questions if len(q.turns) >= turn == len(turns[q.question_id]) + 1]
            completions = model.generate(
                [conversation(q, turns[q.question_id], turn) for q in asked],
                max_new_tokens=self.max_new_tokens,
                temperature=[self._temperature(q) for q in asked],
                seed=seed,
                batch_size=self.batch_size,
            )
            for question, completion in zip(asked, completions, strict=True):
                number = question.question_id
                if completion.error is None:
                    turns[number] += (completion.text,)
                    stored[number, turn] = completion.record_fields
                else:  # its conversation does not fit the context, and a longer one will not either
                    reason = f"no answer to turn {turn}: {completion.error}"
                    failed |= {(number, later): reason for later in range(turn, len(question.turns) + 1)}
        return Answers(f"{model.method}-{model.fingerprint[:12]}", turns, failed, stored)

    def _ratings(self, answers: Answers, judging: Judging) -> Iterator[Record]:
        judgments, failed = judging.rate([answers])
        for turn, raw in self._turns(answers):
            judgment, reason = judgments.get((answers.name, turn)), failed.get((answers.name, turn))
            raw |= {"judge": judgment and judgment.judge[0], "judgment": judgment and judgment.judgment}
            value = None if reason is not None or judgment is None else float(judgment.score)
            yield _record(turn, "mt_bench", value, reason, raw)

    def _wins(self, answers: Answers, baseline: Answers, judging: Judging) -> Iterator[Record]:
        judgments, failed = judging.compare([(answers, baseline)])
        for turn, raw in self._turns(answers):
            place = answers.name, baseline.name, turn
            judgment, reason = judgments.get(place), answers.failed.get(turn)
            if reason is None and turn in baseline.failed:
                reason = f"{baseline.name}: {baseline.failed[turn]}"
            reason = reason or failed.get(place)
            raw["baseline"] = baseline.name
            raw |= {f"baseline_{name}": value for name, value in baseline.record_fields(turn).items()}
            if judgment is not None:
                raw |= {"judge": judgment.judge[0], "winners": [judgment.g1_winner, judgment.g2_winner]}
                raw["judgment"] = [judgment.g1_judgment, judgment.g2_judgment]
            value = None if reason is not None or judgment is None else _WIN[judgment.winner]
            yield _record(turn, "mt_bench_win", value, reason, raw)

    def _turns(self, answers: Answers) -> Iterator[tuple[Turn, dict[str, Any]]]:
        """Every turn, and what a record's ``raw`` says of it and of the answer."""
        for question in self._questions:
            for number, prompt in enumerate(question.turns, 1):
                turn = question.question_id, number
                about = {"category": question.category, "turn": number, "temperature": self._temperature(question)}
                yield turn, {**about, "prompt": prompt, **answers.record_fields(turn)}


def _record(turn: Turn, metric: str, value: float | None, error: str | None, raw: dict[str, Any]) -> Record:
    return Record(f"{turn[0]}:{turn[1]}", str(turn[0]), metric, value, error, raw)
