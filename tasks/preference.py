"""Preference: how much more likely a model holds the chosen answer than the rejected one, on held-out triples."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from harness.benchmark import BenchmarkConfig, Metric, Record, register_benchmark
from harness.data.refs import TriplesPath
from harness.data.triples import Triple, load_triples
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
class Preference(BenchmarkConfig):
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
        _ = self._triples

    def prompts(self) -> list[str]:
        return [m["content"] for triple in self._triples for m in triple.prompt if m["role"] == "user"]

    def run(
        self, model: Responder, *, judge: Judge | None = None, seed: int = 0, folder: Path | None = None
    ) -> Iterator[Record]:
        """Nothing is drawn and nothing judged, so ``seed`` and ``judge`` have no effect; no files are written."""
        scored = list(enumerate(zip(self._triples, self._scores(model), strict=True), 1))
        for number, (triple, score) in sorted(scored, key=lambda one: one[1][1].fits):  # what does not fit comes first
            yield from _records(number, triple, score)

    def _scores(self, model: Responder) -> list[TripleScore]:
        return score_triples(model, self._triples, batch_size=self.batch_size)

    @cached_property
    def _triples(self) -> list[Triple]:
        return load_triples(self.triples)


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
