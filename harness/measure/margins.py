"""How much more likely a model holds chosen answers than rejected ones: the log-likelihoods of triples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.triples import Triple
from harness.responder import Responder


@dataclass(frozen=True)
class TripleScore:
    """log p(answer | prompt) in nats and the tokens of the chosen and the rejected answer, its end of turn included.

    ``error`` says why there is nothing to use: the triple does not fit the context (then there are no figures), or a
    log-likelihood is not finite.
    """

    loglikelihoods: tuple[float, float] = (math.nan, math.nan)
    tokens: tuple[int, int] = (0, 0)
    error: str | None = None
    fits: bool = True

    @property
    def chosen(self) -> float:
        """log p(chosen) per token."""
        return self.loglikelihoods[0] / self.tokens[0]

    @property
    def margin(self) -> float:
        """Nats per token: each log-likelihood divided by its answer's tokens, so that length gives no advantage."""
        return self.chosen - self.loglikelihoods[1] / self.tokens[1]


def score_triples(model: Responder, triples: Sequence[Triple], *, batch_size: int = 64) -> list[TripleScore]:
    """The score of each triple, in the chat format and with any steering on."""
    requests, found = [], []
    for triple in triples:
        try:
            prompt, *answers = model.triple_ids(triple)
        except ValueError as problem:  # longer than the context
            found.append(TripleScore(error=str(problem), fits=False))
            continue
        requests += [(prompt, [*answer, model.chat.end_id]) for answer in answers]
        found.append(None)
    values = iter(model.loglikelihood_tokens(requests, batch_size=batch_size))
    lengths = iter(len(answer) for _, answer in requests)
    scores = []
    for score in found:
        if score is None:
            pair = (next(values)[0], next(values)[0])
            error = None if all(map(math.isfinite, pair)) else "log-likelihoods are not both finite: {} and {}"
            score = TripleScore(pair, (next(lengths), next(lengths)), error and error.format(*pair))
        scores.append(score)
    return scores
