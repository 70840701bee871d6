"""Answers: what a model says to held-out prompts; the judge's rating, the tone, and whether it holds together."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from harness.benchmark import Item, Metric, PromptBenchmark, Record, Sample, prompt_fields, register_benchmark
from harness.data.refs import InputPath
from harness.data.triples import Conversation, Message, Triple, load_triples, read_prompt
from harness.files import read_jsonl
from harness.judging import Judge, Rating, Verb
from harness.responder import Completion, Responder
from tasks.repetition import repetition
from tasks.tone import Wanted, agreement, tone, vader_version

LOOPING = 0.5
"""More than this share of an answer's sequences of four words occurring before makes it a loop."""
_RATING = Metric(name="answer_rating", title="Rating of answers", unit="rating 1-10", digits=2, made_of="ratings")
_BROKEN = Metric(name="broken_answers", title="Broken answers", unit="% empty or looping", higher_is_better=False)


@dataclass(frozen=True)
class _Asked:
    """A prompt, its number in the file where it comes first, and the chosen answer there, where the file has one."""

    number: int
    prompt: Conversation
    chosen: str | None = None


@register_benchmark("answers")
class Answers(PromptBenchmark):
    """Answers to each different prompt of a file, on which no method is fitted.

    ``answer_rating``: the judge's rating, 1-10, unless ``rating: false``. ``answer_tone``, where ``tone`` says which
    way is better: VADER's compound score, -1 to 1, a measure from outside (package ``vaderSentiment``).
    ``broken_answers``: percent of answers without a letter or digit, or in which more than half of the sequences of
    four words occur before. The file is JSONL with ``prompt``, or triples, of which the report says how far tone agrees
    with their labels.
    """

    files: ClassVar[str | None] = "held_out"  # "answers" is every cell's store of answers

    path: InputPath = Field(description="JSONL with prompts, or triples, on which no method is fitted")
    limit: int | None = Field(None, ge=1, description="first different prompts of the file; all unless given")
    rating: bool = Field(True, description="whether the judge rates the answers")
    tone: Wanted | None = Field(None, description="the better tone; not measured unless given")
    max_new_tokens: int = Field(128, ge=1, description="tokens per answer")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    batch_size: int = Field(64, ge=1, description="conversations generated together")

    @property
    def needs_judge(self) -> bool:
        return self.rating

    @property
    def asks(self) -> frozenset[Verb]:
        return frozenset({"rate"}) if self.rating else frozenset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        toned = [] if self.tone is None else [_tone_metric(self.tone)]
        measured = [_RATING] * self.rating + [*toned, _BROKEN]
        reference = "chosen" if all(one.chosen is not None for one in self._asked) else None
        sample = Sample(heading="Prompt {number}", count=3, reference=reference)
        return (measured[0].model_copy(update={"sample": sample}), *measured[1:])

    @property
    def notes(self) -> tuple[str, ...]:
        counted = "Broken answers are counted: those without a letter or digit, or that mostly repeat themselves."
        if self.tone is None:
            return (counted,)
        said = f"Tone is the compound score of VADER {vader_version()}, a lexicon's and no judge's."
        return (counted, said, *([agreement(self._triples).sentence(self.tone)] if self._triples else []))

    def check(self) -> None:
        if self.tone is not None:
            vader_version()
        _ = self._all_asked

    def prompts(self) -> list[str]:
        return [m["content"] for one in self._asked for m in one.prompt if m["role"] == "user"]

    def items(self) -> list[Item]:
        return [
            Item(str(one.number), f"{self.path.name}, prompt {one.number}", one.prompt, generated=self.max_new_tokens)
            for one in self._asked
        ]

    def run(self, model: Responder, *, judge: Judge | None, seed: int, folder: Path | None = None) -> Iterator[Record]:
        """The evaluators know no file format for this, so nothing is written to ``folder``."""
        rows = self._answers(model, seed)
        if self.rating:
            yield from _rated(rows, judge)
        for asked, answer in rows:
            words = _Words.of(answer.text)
            measured = {} if self.tone is None else {"answer_tone": tone(answer.text)}
            for metric, value in {**measured, _BROKEN.name: 100.0 * words.broken}.items():
                yield _record(asked, answer, metric, value, words=words.count, repetition=words.repetition)

    def judge_again(self, model: Responder, *, judge: Judge, seed: int, folder: Path | None = None) -> Iterator[Record]:
        """The ratings alone: the rest is no judge's."""
        return _rated(self._answers(model, seed), judge)

    def _answers(self, model: Responder, seed: int) -> list[tuple[_Asked, Completion]]:
        completions = model.generate(
            [one.prompt for one in self._asked],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
            batch_size=self.batch_size,
        )
        return list(zip(self._asked, completions, strict=True))

    @cached_property
    def _triples(self) -> list[Triple]:
        """What the file holds, where that is triples; none where it is prompts."""
        rows = read_jsonl(self.path, "prompts")
        return load_triples(self.path) if any({"chosen", "rejected"} & set(row) for _, row in rows) else []

    @property
    def _asked(self) -> list[_Asked]:
        """Those that are asked."""
        return [one for one in self._all_asked if str(one.number) not in self._left_out]

    @cached_property
    def _all_asked(self) -> list[_Asked]:
        found: dict[str, _Asked] = {}
        for number, (prompt, chosen) in enumerate(self._read(), 1):
            found.setdefault(json.dumps(prompt), _Asked(number, prompt, chosen))
        return list(found.values())[: self.limit]

    def _read(self) -> Iterator[tuple[Conversation, str | None]]:
        if self._triples:
            yield from ((triple.prompt, triple.chosen) for triple in self._triples)
            return
        for line, row in read_jsonl(self.path, "prompts"):
            try:
                yield read_prompt(row.get("prompt")), None
            except ValueError as problem:
                raise ValueError(f"{self.path}:{line}: {problem}") from None


@dataclass(frozen=True)
class _Words:
    """What can be counted of an answer's words."""

    count: int
    repetition: float
    broken: bool

    @classmethod
    def of(cls, text: str) -> "_Words":
        repeated, empty = repetition(text), not any(letter.isalnum() for letter in text)
        return cls(len(text.split()), round(repeated, 3), empty or repeated > LOOPING)


def _rated(rows: Sequence[tuple[_Asked, Completion]], judge: Judge | None) -> Iterator[Record]:
    if judge is None:
        raise ValueError("benchmark 'answers' needs a judge for its ratings; add `judge:`, or set `rating: false`")
    answered = [(asked, answer) for asked, answer in rows if answer.error is None]
    said = [(*asked.prompt, Message(role="assistant", content=answer.text)) for asked, answer in answered]
    for (asked, answer), verdict in zip(answered, judge.rate([Rating(one) for one in said]), strict=True):
        yield _record(asked, answer, _RATING.name, verdict.value, verdict.error, verdict=verdict.raw)
    for asked, answer in rows:
        if answer.error is not None:
            yield _record(asked, answer, _RATING.name, None)


def _tone_metric(wanted: Wanted) -> Metric:
    return Metric(
        name="answer_tone",
        title="Tone of answers",
        unit="VADER, -1 to 1",
        higher_is_better=wanted == "positive",
        digits=3,
        signed=True,
    )


def _record(
    asked: _Asked, answer: Completion, metric: str, value: float | None, error: str | None = None, **raw: object
) -> Record:
    if answer.error is not None:
        value, error = None, f"no answer: {answer.error}"
    chosen = {} if asked.chosen is None else {"chosen": asked.chosen}
    return Record(
        item=str(asked.number),
        cluster=hashlib.sha256(json.dumps(asked.prompt).encode()).hexdigest()[:16],
        metric=metric,
        value=value,
        error=error,
        raw={**prompt_fields(asked.prompt), **chosen, **answer.record_fields, **raw},
    )
