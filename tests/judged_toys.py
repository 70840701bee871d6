"""A plugin for tests of judging: a benchmark whose answers are rated, and judges that rate by simple rules."""

from pathlib import Path
from typing import ClassVar, Literal

from harness.benchmark import BenchmarkConfig, Metric, Record, Sample, register_benchmark
from harness.data.triples import Message, conversation
from harness.judging import JudgeConfig, Rating, Verdict, register_judge
from harness.judging.judge import Verb

QUESTIONS = [f"w{i} w30" for i in range(8)]


@register_benchmark("toy_rated")
class ToyRated(BenchmarkConfig):
    """Rates one sampled answer to each question."""

    @property
    def metrics(self):
        return (
            Metric(
                name="mt_bench",
                title="MT-Bench",
                unit="rating 1-10",
                digits=2,
                made_of="ratings",
                sample=Sample(heading="Question {cluster} ({category}), turn {turn}", count=3, spread="category"),
            ),
        )

    @property
    def asks(self) -> frozenset[Verb]:
        return frozenset({"rate"})

    def check(self) -> None: ...

    def prompts(self) -> list[str]:
        return QUESTIONS

    def run(self, model, *, judge, seed, folder=None):
        asked = [conversation(question) for question in QUESTIONS]
        answers = model.generate(asked, max_new_tokens=8, temperature=1.0, seed=seed)
        requests = [
            Rating((*q, Message(role="assistant", content=a.text))) for q, a in zip(asked, answers, strict=True)
        ]
        for index, (answer, verdict) in enumerate(zip(answers, judge.rate(requests), strict=True)):
            raw = {"category": "toys", "turn": 1, "prompt": QUESTIONS[index], **answer.record_fields, "by": judge.label}
            yield Record(str(index), str(index), "mt_bench", verdict.value, verdict.error, raw)


@register_judge("toy_rule")
class ToyRule(JudgeConfig):
    """Rates an answer by its first word's number or its length. ``fail_while``: a file; while it exists, every third
    verdict fails, and all is broken while it says so."""

    verbs: ClassVar[frozenset[Verb]] = frozenset({"rate", "compare"})
    rule: Literal["first word", "length"] = "first word"
    fail_while: str = ""
    made_from: tuple[str, ...] = ()

    @property
    def label(self):
        return f"toy-{self.rule.replace(' ', '-')}"

    @property
    def statement(self):
        return f"A toy judge went by the {self.rule}."

    def prompts(self) -> list[str]:
        return list(self.made_from)

    def rate(self, requests) -> list[Verdict]:
        failing = Path(self.fail_while) if self.fail_while else None
        failing = failing if failing is not None and failing.exists() else None
        if failing is not None and failing.read_text() == "broken":
            raise RuntimeError("the toy judge broke")
        verdicts = [self._rate(request.conversation[-1]["content"]) for request in requests]
        if failing is not None:
            verdicts[::3] = [Verdict(None, "hm", error="the toy judge was away")] * len(verdicts[::3])
        return verdicts

    def _rate(self, answer: str) -> Verdict:
        words = answer.split() or ["w0"]
        number = int(words[0][1:]) if words[0][1:].isdecimal() else 0
        value = 1 + 9 * number / 39 if self.rule == "first word" else min(10, 1 + len(set(words)))
        return Verdict(float(value), f"[[{value}]]")
