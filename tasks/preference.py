"""Preference: how much more likely a model holds the chosen answer than the rejected one, on held-out triples."""

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from harness.benchmark import BenchmarkConfig, Metric, Record, register_benchmark
from harness.data.refs import InputPath
from harness.data.triples import Triple, load_triples

if TYPE_CHECKING:
    from harness.judging import Judge
    from harness.model.aligned import AlignedModel

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

    triples: InputPath = Field(description="JSONL of triples that no method is fitted on")
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
        self, model: "AlignedModel", *, judge: "Judge | None" = None, seed: int = 0, folder: Path | None = None
    ) -> Iterator[Record]:
        """Nothing is drawn and nothing judged, so ``seed`` and ``judge`` have no effect; no files are written."""
        requests, fitting = [], []
        for number, triple in enumerate(self._triples, 1):
            try:
                prompt, *answers = model.triple_ids(triple)
            except ValueError as problem:  # longer than the context
                yield from _records(number, triple, {}, str(problem))
                continue
            fitting.append((number, triple))
            requests += [(prompt, [*answer, model.chat.end_id]) for answer in answers]
        scores = [value for value, _ in model.loglikelihood_tokens(requests, batch_size=self.batch_size)]
        for index, (number, triple) in enumerate(fitting):
            pair = slice(2 * index, 2 * index + 2)
            tokens = [len(answer) for _, answer in requests[pair]]
            yield from _records(number, triple, {"loglikelihoods": scores[pair], "tokens": tokens})

    @cached_property
    def _triples(self) -> list[Triple]:
        return load_triples(self.triples)


def _records(number: int, triple: Triple, scored: dict[str, Any], error: str | None = None) -> Iterator[Record]:
    """A triple's record of each metric; ``scored`` holds log-likelihoods and tokens of chosen and rejected."""
    accuracy = margin = None
    raw = {"prompt": triple.prompt[-1]["content"], "chosen": triple.chosen, "rejected": triple.rejected}
    if error is None:
        chosen, rejected = scored["loglikelihoods"]
        if math.isfinite(chosen) and math.isfinite(rejected):
            of_chosen, of_rejected = scored["tokens"]
            accuracy, margin = 100.0 * (chosen > rejected), chosen / of_chosen - rejected / of_rejected
            raw |= scored | {"summed_margin": chosen - rejected}
        else:
            error = f"log-likelihoods are not both finite: {chosen} and {rejected}"
    cluster = hashlib.sha256(json.dumps(triple.prompt).encode()).hexdigest()[:16]
    for metric, value in ((_ACCURACY, accuracy), (_MARGIN, margin)):
        yield Record(item=str(number), cluster=cluster, metric=metric.name, value=value, error=error, raw=raw)
