"""One generated answer, and how a record names it. Nothing here needs torch."""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Completion:
    """One generated answer. ``finished``: it ended with a stop token (not by length).

    ``steered_tokens`` counts the steered positions; with an intervention it equals ``len(token_ids)``, without 0.
    When ``error`` is set nothing was generated and it says why. ``key`` is what the answer is found by in the run's
    store of answers; None where it is in no store.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    steered_tokens: int
    finished: bool
    error: str | None = None
    key: str | None = field(default=None, compare=False)

    @property
    def record_fields(self) -> dict[str, str | None]:
        """What a record's ``raw`` says of the answer, of which it keeps no copy: ``answer_key`` in the store, and
        ``answer_hash`` of the text. In no store it is ``answer``, the text; None where there is no answer.
        """
        if self.key is not None:
            return {"answer_key": self.key, "answer_hash": hashlib.sha256(self.text.encode()).hexdigest()[:16]}
        return {"answer": self.text if self.error is None else None}
