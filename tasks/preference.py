"""Preference: how much more likely a model holds the chosen answer than the rejected one, on held-out triples."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from harness.benchmark import Item, Metric, PromptBenchmark, Record, register_benchmark
from harness.data.refs import TriplesPath
from harness.data.triples import Triple, TripleFile
from harness.judging import Judge
from harness.measure.margins import TripleScore, score_triples
from harness.responder import Responder

_ACCURACY = Metric(name="preference_accuracy", title="Preference accuracy", unit="%", made_of="loglikelihoods")
_MARGIN = Metric(
    name="preference_margin",
    title="Preference margin",
    unit="nats per token",
    digits=3,
    signed=True,
    made_of="loglikelihoods",
)


@register_benchmark("preference")
class Preference(PromptBenchmark):
    """Log-likelihoods of both answers to each prompt of a triples file, in the chat format and with any steering on.

    ``preference_accuracy``: percent of triples with log p(chosen | prompt) > log p(rejected | prompt), summed over
    tokens. ``preference_margin``: nats per token, the difference of the two log-likelihoods, each divided by its
    answer's tokens; so an answer's length gives it no advantage. The token that ends the turn is part of an answer.
    A prompt's triples are one cluster.
    """

    triples: TriplesPath = Field(description="triples that no method is fitted on, in any form of docs/data.md")
    batch_size: int = Field(64, ge=1, description="answers scored together")

    needs_judge: ClassVar[bool] = False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (_ACCURACY, _MARGIN)

    def check(self) -> None:
        _ = self._file

    def prompts(self) -> list[str]:
        return [m["content"] for _, triple in self._numbered for m in triple.prompt if m["role"] == "user"]

    def items(self) -> list[Item]:
        place = {n: f"{self._file.rows.unit} {line}" for n, (line, _) in enumerate(self._file.numbered, 1)}
        return [Item(str(n), place[n], t.prompt, (t.chosen, t.rejected)) for n, t in self._numbered]

    def run(
        self, model: Responder, *, judge: Judge | None = None, seed: int = 0, folder: Path | None = None
    ) -> Iterator[Record]:
        """Nothing is drawn and nothing judged, so ``seed`` and ``judge`` have no effect; no files are written."""
        scored = list(zip(self._numbered, self._scores(model), strict=True))
        for (number, triple), score in sorted(scored, key=lambda one: one[1].fits):  # what does not fit comes first
            yield from _records(number, triple, score)

    def _scores(self, model: Responder) -> list[TripleScore]:
        return score_triples(model, [triple for _, triple in self._numbered], batch_size=self.batch_size)

    @property
    def _numbered(self) -> list[tuple[int, Triple]]:
        """Those that are scored, each with its place among all."""
        return [(n, t) for n, t in enumerate(self._file.triples, 1) if str(n) not in self._left_out]

    @cached_property
    def _file(self) -> TripleFile:
        return TripleFile.read(self.triples)


def _records(number: int, triple: Triple, score: TripleScore) -> Iterator[Record]:
    """A triple's record of each metric."""
    accuracy = margin = None
    raw: dict[str, Any] = {"prompt": triple.prompt[-1]["content"], "chosen": triple.chosen, "rejected": triple.rejected}
    if score.error is None:
        chosen, rejected = score.loglikelihoods
        accuracy, margin = 100.0 * (chosen > rejected), score.margin
        raw |= {"loglikelihoods": [chosen, rejected], "tokens": list(score.tokens), "summed_margin": chosen - rejected}
    cluster = hashlib.sha256(json.dumps(triple.prompt).encode()).hexdigest()[:16]
    for metric, value in ((_ACCURACY, accuracy), (_MARGIN, margin)):
        yield Record(item=str(number), cluster=cluster, metric=metric.name, value=value, error=score.error, raw=raw)
