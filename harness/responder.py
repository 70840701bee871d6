"""What benchmarks use of a model: answers to conversations, and log-likelihoods. Nothing here needs torch."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.data.triples import Conversation, Triple

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.model.chat import ChatFormat


@dataclass(frozen=True)
class Completion:
    """One generated answer. ``finished``: it ended with a stop token (not by length).

    ``steered_tokens`` counts the steered positions; with an intervention it equals ``len(token_ids)``, without 0.
    ``edited`` are the parts of the text, [start, end) in characters, whose tokens were chosen from an edited residual
    stream; None where nobody noted it. When ``error`` is set nothing was generated and it says why. ``key`` is what the
    answer is found by in the run's store of answers; None where it is in no store.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    steered_tokens: int
    finished: bool
    error: str | None = None
    key: str | None = field(default=None, compare=False)
    edited: tuple[tuple[int, int], ...] | None = field(default=None, compare=False)

    @property
    def record_fields(self) -> dict[str, str | None]:
        """What a record's ``raw`` says of the answer, of which it keeps no copy: ``answer_key`` in the store, and
        ``answer_hash`` of the text. In no store it is ``answer``, the text; None where there is no answer.
        """
        if self.key is not None:
            return {"answer_key": self.key, "answer_hash": hashlib.sha256(self.text.encode()).hexdigest()[:16]}
        return {"answer": self.text if self.error is None else None}


class Responder(Protocol):
    """A model as benchmarks see it: an `harness.model.aligned.AlignedModel`, or one whose answers are kept in a store.

    The methods are those of `AlignedModel`, where they are described. ``model`` is the transformers model that runs.
    """

    @property
    def method(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def model(self) -> "PreTrainedModel": ...

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase": ...

    @property
    def chat(self) -> "ChatFormat": ...

    @property
    def system_prompt(self) -> str | None: ...

    def unaligned(self) -> "Responder":
        """The base model that alignment started from."""
        ...

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float | Sequence[float] = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[Completion]: ...

    def loglikelihood(self, pairs: Sequence[tuple[str, str]], *, batch_size: int = 64) -> list[tuple[float, bool]]: ...

    def loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[float, bool]]: ...

    def prompt_ids(self, conversation: Conversation) -> list[int]: ...

    def triple_ids(self, triple: Triple) -> tuple[list[int], list[int], list[int]]: ...

    def steering(self) -> "AbstractContextManager[Any]": ...
