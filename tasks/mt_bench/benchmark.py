"""The benchmark `mt_bench`: what a suite may set, and the records that come out."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from harness.benchmark import BenchmarkConfig, Metric, Record, Sample, register_benchmark
from harness.data import data_file, data_folder
from harness.data.refs import InputPath
from harness.evaluators.fastchat import files as fastchat
from harness.evaluators.fastchat.files import Question
from harness.judging import Judge
from harness.model.aligned import AlignedModel
from tasks.mt_bench.answers import Answers, Turn, ask, keep_answers
from tasks.mt_bench.judging import Judging

if TYPE_CHECKING:
    from harness.judging.judge import Verb

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
_VERBS: "dict[Mode, Verb]" = {"single": "rate", "pairwise-baseline": "compare"}
_WIN = {"model_1": 100.0, "tie": 50.0, "model_2": 0.0}  # ours is model_1


@register_benchmark("mt_bench")
class MTBench(BenchmarkConfig):
    """FastChat's MT-Bench; one record for each turn of each question in each of the ``modes``.

    ``single``: metric ``mt_bench``, the judge's rating from 1 to 10. ``pairwise-baseline``: metric ``mt_bench_win``,
    100 for a win over the baseline's answer in both orders, 0 for a loss in both, 50 for anything else.

    The folder receives question.jsonl, model_answer/<model>.jsonl and model_judgment/<judge>_{single,pair}.jsonl in
    FastChat's formats and places, but that judgments leave the judge's prompt out: it would repeat the answer, and no
    program of FastChat's reads it. Judgments found there of the same answers are used again, except failed ones: those
    are asked for anew.
    """

    questions: InputPath = Field(description="FastChat's question.jsonl; without it, that of the data folder")
    references: InputPath | None = Field(
        None, description="reference answers, in FastChat's format; for the data folder's questions GPT-4's by default"
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
        return tuple(_METRICS[mode] for mode in self.modes)

    @property
    def asks(self) -> "frozenset[Verb]":
        return frozenset(_VERBS[mode] for mode in self.modes)

    def check(self) -> None:
        """Read all files; also raises ValueError for a category without a temperature."""
        data = data_folder().absolute()
        for path in (self.questions, self.references):
            if path is not None and path.is_relative_to(data):
                data_file(path.relative_to(data).as_posix(), "mt_bench")
        for question in self._questions:
            self._temperature(question)
        _ = self._references, self._baseline

    def prompts(self) -> list[str]:
        return [turn for question in self._questions for turn in question.turns]

    def run(
        self, model: AlignedModel, *, judge: "Judge | None", seed: int, folder: Path | None = None
    ) -> Iterator[Record]:
        return self._judged(model, judge, seed, folder, export=True)

    def judge_again(
        self, model: AlignedModel, *, judge: Judge, seed: int, folder: Path | None = None
    ) -> Iterator[Record]:
        """As `run`, without the answer files."""
        return self._judged(model, judge, seed, folder, export=False)

    def _judged(
        self, model: AlignedModel, judge: Judge | None, seed: int, folder: Path | None, *, export: bool
    ) -> Iterator[Record]:
        if judge is None:
            raise ValueError("benchmark 'mt_bench' needs a judge; add `judge:` to the suite")
        answers = self._ask(model, seed)
        baseline = None
        if "pairwise-baseline" in self.modes:
            baseline = self._baseline or self._ask(model.unaligned(), seed)
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

    def judging(self, judge: Judge, folder: Path | None) -> Judging:
        """How any model's answers to these questions are judged; judgments are kept in ``folder``."""
        return Judging(judge, self._questions, self._references, folder)

    @cached_property
    def _questions(self) -> list[Question]:
        return fastchat.load_questions(self.questions)

    @cached_property
    def _references(self) -> dict[int, tuple[str, ...]]:
        if self.references is None:
            return {}
        return {answer.question_id: answer.turns for answer in fastchat.load_answers(self.references)}

    @cached_property
    def _baseline(self) -> Answers | None:
        """The baseline's answers from its file; every turn must be there."""
        if self.baseline is None:
            return None
        answers = Answers.of(self.baseline.stem, fastchat.load_answers(self.baseline), self._questions)
        if answers.failed:
            (question, turn), _ = next(iter(answers.failed.items()))
            raise ValueError(
                f"{self.baseline}: no answer to turn {turn} of question {question}; a baseline must answer every turn "
                f"of {self.questions}"
            )
        return answers

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

    def _ask(self, model: AlignedModel, seed: int) -> Answers:
        return ask(
            model,
            self._questions,
            temperature=self._temperature,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
            batch_size=self.batch_size,
        )

    def _ratings(self, answers: Answers, judging: Judging) -> Iterator[Record]:
        judgments, reasons = judging.rate([answers])
        for question, key in self._turns():
            judgment, reason = judgments[answers.name].get(key), reasons[answers.name].get(key)
            assert reason is not None or judgment is not None
            told = {"judge": judgment and judgment.judge[0], "judgment": judgment and judgment.judgment}
            value = None if reason is not None or judgment is None else float(judgment.score)
            yield self._record("mt_bench", question, key, answers, value, reason, told)

    def _wins(self, answers: Answers, baseline: Answers, judging: Judging) -> Iterator[Record]:
        compared = judging.compare([(answers, baseline)])
        for question, key in self._turns():
            place = answers.name, baseline.name, key
            judgment = compared.judgments.get(place)
            reason = answers.failed.get(key)
            if reason is None and key in baseline.failed:
                reason = f"{baseline.name}: {baseline.failed[key]}"
            reason = reason or compared.failed.get(place)
            told: dict[str, Any] = {"baseline": baseline.name}
            told |= {f"baseline_{name}": value for name, value in baseline.record_fields(key).items()}
            if judgment is not None:
                told |= {"judge": judgment.judge[0], "winners": [judgment.g1_winner, judgment.g2_winner]}
                told["judgment"] = [judgment.g1_judgment, judgment.g2_judgment]
            value = None if reason is not None or judgment is None else _WIN[judgment.winner]
            yield self._record("mt_bench_win", question, key, answers, value, reason, told)

    def _turns(self) -> Iterator[tuple[Question, Turn]]:
        return ((q, (q.question_id, turn)) for q in self._questions for turn in (1, 2))

    def _record(
        self,
        metric: str,
        question: Question,
        key: Turn,
        answers: Answers,
        value: float | None,
        reason: str | None,
        told: dict[str, Any],
    ) -> Record:
        raw = {
            "category": question.category,
            "turn": key[1],
            "temperature": self._temperature(question),
            "prompt": question.turns[key[1] - 1],
            **answers.record_fields(key),
        }
        return Record(f"{key[0]}:{key[1]}", str(key[0]), metric, value, reason, raw | told)
