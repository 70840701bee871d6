"""Judge models behind an OpenAI-compatible endpoint, with prices, cap and ledger."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, PrivateAttr

from harness.data.triples import Conversation
from harness.judging.chat_endpoint import ChatEndpoint, NotAsked, RequestHooks
from harness.judging.judge import register_judge
from harness.judging.ledger import CapReached, Ledger, Outcome
from harness.judging.prompted import PromptedJudge, Received, Reply
from harness.judging.verdicts import Claims, Keeper, Replies
from harness.pulse import beat

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_POLL_SECONDS = 0.1
_TOKENS_A_MESSAGE = 16
"""More than any chat format adds to a message."""


@register_judge("openai")
class OpenAIJudge(PromptedJudge):
    """``model`` at ``base_url``, asked by `ChatEndpoint`; its key is read from the environment and kept nowhere.

    Each call and what it cost is entered in the ledger of the run. With ``max_cost`` nothing is sent that could bring
    the sum of the run above it: a call counts with the most it may cost (a token for every byte sent, ``max_tokens``
    back) until the server has said what it used, and for good if it never does. Verdicts that are not asked for
    because of it are failures, and asked for when a later run has a higher cap.
    """

    operational: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "max_tokens", "concurrency", "attempts", "timeout"}
        | {"price_in", "price_out", "max_cost"}
    )

    base_url: str = Field(description="address of the API, e.g. http://localhost:8000/v1; where it is may change")
    model: str = Field(description="the name that the endpoint knows the model by")
    api_key_env: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key")
    temperature: _Amount | None = Field(
        0.0, description="0 for the most likely verdict; null sends none, for models that refuse to be told one"
    )
    max_tokens: PositiveInt = Field(2048, description="of a reply (FastChat asks so many); a longer one fails")
    concurrency: PositiveInt = Field(8, description="requests that are open at once, in each process")
    attempts: PositiveInt = Field(6, description="how often a request is sent before it is given up")
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(120.0, description="seconds for one attempt")
    price_in: _Amount | None = Field(None, description="price of a million prompt tokens")
    price_out: _Amount | None = Field(None, description="price of a million tokens of replies")
    max_cost: _Amount | None = Field(None, description="most that the run may spend, in the prices' currency")
    _ledger: Ledger | None = PrivateAttr(None)

    @property
    def label(self) -> str:
        """The model's name, as a file may be called, and what its verdicts depend on besides."""
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', self.model)}-{self.settings_hash}"

    @property
    def statement(self) -> str:
        warmth = "its own temperature" if self.temperature is None else f"temperature {self.temperature:g}"
        return self._stated(f"{self.model} ({warmth}), asked through an OpenAI-compatible endpoint")

    def check(self) -> None:
        """Also refuses an address that is none, prices of which one is missing, a cap without prices, a missing key."""
        super().check()
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out (prices of a million tokens) belong together; give both, or none")
        if self.max_cost is not None and self.price_in is None:
            raise ValueError("max_cost needs price_in and price_out (prices of a million tokens); 0 for a free server")
        self._endpoint.check_key()

    def at(self, folder: Path) -> Self:
        judge = super().at(folder)
        judge._ledger = Ledger(folder)
        return judge

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What so many tokens cost; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6

    def highest_cost(self, question: Conversation) -> float | None:
        """The most that one call for ``question`` can cost; None without prices."""
        # A byte-level vocabulary has no token shorter than a byte; the reply begins with a message's head, too.
        tokens = sum(len(m["content"].encode()) + _TOKENS_A_MESSAGE for m in question) + _TOKENS_A_MESSAGE
        return self.cost(tokens, self.max_tokens)

    @cached_property
    def _endpoint(self) -> ChatEndpoint:
        return ChatEndpoint(**self.model_dump(include={field.name for field in fields(ChatEndpoint)}))

    def _looked_up(self, verb: str, requests: int, reused: int) -> None:
        if self._ledger is not None:
            self._ledger.batch(self.label, verb, requests=requests, reused=reused)

    def _ask(self, conversations: Sequence[Conversation], received: Received) -> None:
        if self._kept is None or self._ledger is None:
            raise ValueError(f"judge {self.label} needs a folder for its replies and its ledger; call at(folder) first")
        with self._kept.claims() as claims:
            queue = RequestQueue(self, self._kept, self._ledger, claims, conversations, received)
            self._endpoint.ask_all(conversations, queue)


@dataclass
class RequestQueue(RequestHooks):
    """One batch of questions on its way: spares what another process is asking, and keeps to the ledger and the cap."""

    judge: OpenAIJudge
    kept: Replies
    ledger: Ledger
    claims: Claims | Keeper
    questions: Sequence[Conversation]
    received: Received

    def __post_init__(self) -> None:
        self._keys = [self.judge.key(question) for question in self.questions]
        self._useless = [self.kept.get(key) for key in self._keys]
        self._calls: dict[int, str] = {}
        self._ended = asyncio.Event()

    async def ready(self, index: int) -> Reply | None:
        """Wait while another process asks the same, and take the reply that it got."""
        key = self._keys[index]
        while not self.claims.take(key):
            await asyncio.sleep(_POLL_SECONDS)
        self.kept.refresh()
        text = self.kept.get(key)
        if text is None or text == self._useless[index]:
            return None
        self.claims.release(key)
        self.ledger.shared(self.judge.label)
        self.received(index, Reply(text))
        return Reply(text)

    async def sending(self, index: int) -> None:
        """Enter the call; near the cap, wait for this batch's open calls, which may cost less than they might."""
        beat()
        most = self.judge.highest_cost(self.questions[index])
        while True:
            try:
                call = self.ledger.send(self.judge.label, self.judge.base_url, most=most, cap=self.judge.max_cost)
            except CapReached as problem:
                if not self._calls:
                    raise NotAsked(str(problem)) from None
                self._ended.clear()
                await self._ended.wait()
            else:
                self._calls[index] = call
                return

    def refused(self, index: int, why: str) -> None:
        """An error status is taken to be free."""
        self._end(index, "refused", why=why, cost=0.0)

    def lost(self, index: int, why: str) -> None:
        self._end(index, "lost", why=why, cost=None)

    def came(self, index: int, reply: Reply) -> None:
        """The reply is on disk before the ledger says that it came: a process killed in between has paid for it."""
        self.received(index, reply)
        if index in self._calls:
            counted = reply.prompt_tokens or reply.completion_tokens
            self._end(
                index,
                "useless" if reply.text is None else "answered",
                why=reply.error or "",
                cost=self.judge.cost(reply.prompt_tokens, reply.completion_tokens) if counted else None,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                model=reply.model,
            )
        self.claims.release(self._keys[index])

    def _end(self, index: int, outcome: Outcome, *, cost: float | None, **more: Any) -> None:
        self.ledger.end(self._calls.pop(index), outcome, cost=cost, **more)
        self._ended.set()
