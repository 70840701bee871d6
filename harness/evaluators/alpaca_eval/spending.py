"""What one of the package's annotators costs: its calls in the ledger of the run, and under the cap of the run."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.judging.chat_endpoint import NotAsked
from harness.judging.ledger import CapReached, Ledger

LONGEST = 2048
"""Tokens of a reply where the configuration names no ``max_tokens``: the package's own."""
_PROMPT_HEAD = 256
"""Tokens, more than any chat format adds to the few messages of a prompt."""


@dataclass
class Spending:
    """The calls of annotator ``label``, made by many threads and processes, in ``ledger``.

    ``price`` is that of a million tokens, prompt or reply alike, as the package has it; None: not known. With ``cap``
    nothing is sent that could bring the sum of the ledger above it: see `Ledger.send`.
    """

    ledger: Ledger
    label: str
    address: str
    price: float | None
    cap: float | None
    _free: threading.Condition = field(default_factory=threading.Condition)
    _open: int = 0

    def reused(self, wanted: int, known: int) -> None:
        """``wanted`` answers are wanted, ``known`` of which need not be asked for."""
        self.ledger.batch(self.label, "compare", requests=wanted, reused=known)

    def pay(self, prompt: str, settings: Mapping[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``ask`` brings for ``prompt``; the call and what it cost are in the ledger.

        Raises NotAsked near the cap, once no call of this process is open that may turn out cheaper than it might.
        """
        longest = settings.get("max_tokens")
        longest = longest if isinstance(longest, int) else LONGEST
        most = self._cost(len(prompt.encode(errors="replace")) + _PROMPT_HEAD + longest)
        call = self._begin(most)
        try:
            brought = ask()
        except Exception as problem:
            refused = isinstance(getattr(problem, "status_code", None), int)
            self._end(call, "refused" if refused else "lost", 0.0 if refused else None, type(problem).__name__)
            raise
        tokens = _tokens(brought)
        self._end(call, "answered" if tokens else "useless", self._cost(tokens) if tokens else None, "")
        return brought

    def _cost(self, tokens: float) -> float | None:
        return None if self.price is None else tokens * self.price / 1e6

    def _begin(self, most: float | None) -> str:
        with self._free:
            while True:
                try:
                    call = self.ledger.send(self.label, self.address, most=most, cap=self.cap)
                except CapReached as problem:
                    if not self._open:
                        raise NotAsked(str(problem).replace("max_cost", "annotator_max_cost")) from None
                    self._free.wait()
                else:
                    self._open += 1
                    return call

    def _end(self, call: str, outcome: Any, cost: float | None, why: str) -> None:
        with self._free:
            self.ledger.end(call, outcome, cost=cost, why=why)
            self._open -= 1
            self._free.notify_all()


def _tokens(brought: Mapping[str, Any]) -> float:
    """Tokens of one completion, prompt included, by the server's count; 0 where it does not say."""
    (whole, *_) = brought.get("completions_all") or [None]
    counted = whole.get("total_tokens") if isinstance(whole, dict) else None
    return counted if isinstance(counted, int | float) and counted > 0 else 0
