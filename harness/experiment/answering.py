"""A model that looks its answers up in a store first, and stores the new ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.data.triples import Conversation, Triple
from harness.responder import Completion
from harness.run_folder.answers import AnswerStore, answer_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.engine.served import Served
    from harness.experiment.kept import Kept
    from harness.model.aligned import AlignedModel
    from harness.model.chat import ChatFormat
    from harness.model.steering import Steering


@dataclass(frozen=True, eq=False)
class Answering:
    """A `harness.responder.Responder` for one benchmark: ``aligned`` is asked only for answers not in ``store``.

    New answers are in the store as soon as their batch is done, with what the steering session counted. So a killed
    process loses at most the batch it was at, and another judge is given the same answers. Log-likelihoods are not
    stored: a benchmark that is made of them scores anew after an interruption. ``tell`` is called after each batch with
    the number of its answers.
    """

    aligned: "AlignedModel | Served | Kept"
    store: AnswerStore
    tell: Callable[[int], object] = lambda _: None
    _asked: set[str] = field(default_factory=set)
    _scored: list[dict[str, Any]] = field(default_factory=list)

    @property
    def method(self) -> str:
        return self.aligned.method

    @property
    def fingerprint(self) -> str:
        return self.aligned.fingerprint

    @property
    def model(self) -> "PreTrainedModel":
        return self.aligned.model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self.aligned.tokenizer

    @property
    def chat(self) -> "ChatFormat":
        return self.aligned.chat

    @property
    def system_prompt(self) -> str | None:
        return self.aligned.system_prompt

    def unaligned(self) -> "Answering":
        """The base model, whose answers are in the same store under its own fingerprint."""
        return Answering(self.aligned.unaligned(), self.store, self.tell)

    def figures(self) -> dict[str, float]:
        """What the intervention did over everything asked for so far, whether now or before an interruption."""
        intervention = self.aligned.intervention
        return {} if intervention is None else intervention.figures([*self.store.tallies(self._asked), *self._scored])

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float | Sequence[float] = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[Completion]:
        """`AlignedModel.generate`; a conversation that is asked for twice with one temperature is answered once.

        An answer that is an error (its prompt does not fit the context) is not stored.
        """
        many = [temperature] * len(conversations) if isinstance(temperature, int | float) else temperature
        keys = [
            answer_key(self.fingerprint, conversation, temperature=one, seed=seed, max_new_tokens=max_new_tokens)
            for conversation, one in zip(conversations, many, strict=True)
        ]
        self._asked.update(keys)
        missing: dict[str, int] = {}
        for row, key in enumerate(keys):
            if self.store.get(key) is None:
                missing.setdefault(key, row)
        wanted = list(missing)
        failed: dict[str, Completion] = {}
        if wanted:
            for batch in self.aligned.generate_batches(
                [conversations[missing[key]] for key in wanted],
                max_new_tokens=max_new_tokens,
                temperature=[many[missing[key]] for key in wanted],
                seed=seed,
                batch_size=batch_size,
            ):
                new = {wanted[row]: completion for row, completion in zip(batch.rows, batch.completions, strict=True)}
                answered = {key: completion for key, completion in new.items() if completion.error is None}
                failed |= {key: completion for key, completion in new.items() if completion.error is not None}
                if answered:
                    self.store.append(answered, batch.tally)
                self.tell(len(new))
        return [failed[key] if key in failed else self.store[key] for key in keys]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]], *, batch_size: int = 64) -> list[tuple[float, bool]]:
        """`AlignedModel.loglikelihood`."""
        return self.loglikelihood_tokens(self.aligned.token_requests(pairs), batch_size=batch_size)

    def loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[float, bool]]:
        """`AlignedModel.loglikelihood_tokens`."""
        scores: dict[int, tuple[float, bool]] = {}
        for batch in self.aligned.score_batches(requests, batch_size=batch_size):
            scores.update(batch.scores)
            if batch.tally is not None:
                self._scored.append(batch.tally)
            if progress is not None:
                progress(len(batch.scores))
        return [scores[row] for row in range(len(requests))]

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        return self.aligned.prompt_ids(conversation)

    def triple_ids(self, triple: Triple) -> tuple[list[int], list[int], list[int]]:
        return self.aligned.triple_ids(triple)

    @contextmanager
    def steering(self) -> "Iterator[Steering | None]":
        """`AlignedModel.steering`; what the session counts is among the `figures`."""
        with self.aligned.steering() as session:
            yield session
        if session is not None and session.tally is not None:
            self._scored.append(session.tally.read())
