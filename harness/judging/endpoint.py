"""Judge models behind an OpenAI-compatible endpoint: the client, and the judge with its prices, cap and ledger."""

import asyncio
import os
import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, PrivateAttr

from harness.data.triples import Conversation, Message
from harness.judging.judge import register_judge
from harness.judging.ledger import CapReached, Ledger, Outcome
from harness.judging.prompted import PromptedJudge, Received, Reply
from harness.judging.verdicts import Claims, Replies

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_POLL_SECONDS = 0.1
_TOKENS_A_MESSAGE = 16
"""More than any chat format adds to a message."""


class NotAsked(Exception):
    """A request was not sent; the message says why."""


class RequestHooks:
    """Sees every request of one `ChatEndpoint.ask_all`, which may be sent several times; this one only looks on.

    ``index`` is that of the conversation. What these methods raise ends everything, but for `NotAsked`.
    """

    async def ready(self, index: int) -> Reply | None:
        """Before the first attempt; a reply given here is taken and nothing is sent."""

    async def sending(self, index: int) -> None:
        """Before each attempt; raises NotAsked to prevent it."""

    def refused(self, index: int, why: str) -> None:
        """The attempt ended with an error status, or without reaching the server (``why`` names the problem)."""

    def lost(self, index: int, why: str) -> None:
        """The attempt was sent and nothing came back; the server may have worked all the same."""

    def came(self, index: int, reply: Reply) -> None:
        """The conversation is over; if the last attempt was neither refused nor lost, ``reply`` is what it brought."""


@dataclass(frozen=True)
class ChatEndpoint:
    """``model`` at ``base_url`` (e.g. https://api.openai.com/v1 or a local server's /v1).

    The key is read from the environment variable ``api_key_env`` when requests are made, and kept nowhere; servers
    that need none work without it. At most ``concurrency`` requests are open at once. Timeouts, lost connections, 429
    and 5xx are tried up to ``attempts`` times, with a growing and jittered pause, or the one that the server asks for.
    Once as many conversations in succession as may be open have used up their attempts, the others are tried once
    each, until one is answered: a server that is gone or hangs does not hold up everything.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 1024
    concurrency: int = 8
    attempts: int = 6
    timeout: float = 120.0
    """Seconds to wait for one reply."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")) or not _host(self.base_url):
            raise ValueError(f"endpoint {self.base_url!r} is no address; give one such as http://localhost:8000/v1")
        parts = urlsplit(self.base_url)
        if parts.username is not None or parts.query or parts.fragment:
            # Not repeated in the message: this is where keys are put by mistake.
            raise ValueError(
                "the address of the endpoint must hold no user, password, '?' or '#' (it is written to files); "
                "give a key in the environment variable that api_key_env names"
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            # Not repeated either: it may be the key itself.
            raise ValueError("api_key_env must be the name of an environment variable, such as OPENAI_API_KEY")
        if not self.model:
            raise ValueError("the endpoint needs the name of a model")
        if min(self.max_tokens, self.concurrency, self.attempts) < 1 or self.timeout <= 0 or self.temperature < 0:
            raise ValueError(
                "max_tokens, concurrency and attempts must be at least 1, timeout above 0 and temperature not below 0"
            )

    def check_key(self) -> None:
        """Raise ValueError when the key cannot be sent, or is missing and the server is not on this machine."""
        key = self._key()
        if key is None and _host(self.base_url) not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError(f"{self.base_url} needs a key: set the environment variable {self.api_key_env}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError(f"the key in {self.api_key_env} has characters that no key has; set it again")

    def ask_all(self, conversations: Sequence[Sequence[Message]], hooks: RequestHooks | None = None) -> list[Reply]:
        """A reply to each conversation, in order. What went wrong with one is in its ``error``; nothing is raised."""
        return asyncio.run(self._ask_all(conversations, hooks or RequestHooks()))

    async def _ask_all(self, conversations: Sequence[Sequence[Message]], hooks: RequestHooks) -> list[Reply]:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        unanswered = 0  # conversations in succession
        async with AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key() or "none",  # the client wants one; a server that checks it refuses it
            timeout=self.timeout,
            http_client=_client(hooks, self.timeout),
        ) as client:

            async def ask(index: int, conversation: Sequence[Message]) -> Reply:
                nonlocal unanswered
                async with gate:
                    reply = await hooks.ready(index)
                    if reply is not None:
                        return reply
                    _asking.set(index)
                    attempts = self.attempts if unanswered < self.concurrency else 1
                    reply, silent = await self._ask(client.with_options(max_retries=attempts - 1), conversation)
                    unanswered = unanswered + 1 if silent else 0
                    hooks.came(index, reply)
                    return reply

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(ask(index, c)) for index, c in enumerate(conversations)]
            except BaseExceptionGroup as problems:  # the hooks could not go on, such as on a full disk
                raise problems.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, client: "AsyncOpenAI", conversation: Sequence[Message]) -> tuple[Reply, bool]:
        """The reply, and whether the server gave none however often it was tried."""
        from openai import APIConnectionError, InternalServerError, OpenAIError, RateLimitError

        messages: Any = [{"role": message["role"], "content": message["content"]} for message in conversation]
        try:
            completion = await client.chat.completions.create(
                model=self.model, messages=messages, temperature=self.temperature, max_tokens=self.max_tokens
            )
        except OpenAIError as problem:
            silent = isinstance(problem, APIConnectionError | InternalServerError | RateLimitError)
            return self._without_key(Reply(None, f"{type(problem).__name__}: {problem}")), silent
        except NotAsked as problem:
            return Reply(None, str(problem)), False
        except ValueError as problem:  # a body that says it is JSON and is not
            return self._without_key(Reply(None, f"the endpoint's answer is not valid JSON: {problem}")), False
        return self._without_key(_reply(completion, self.max_tokens)), False

    def _key(self) -> str | None:
        return os.environ.get(self.api_key_env, "").strip() or None

    def _without_key(self, reply: Reply) -> Reply:
        """Some servers repeat the key they were sent."""
        key = self._key()
        texts = {name: text for name, text in vars(reply).items() if isinstance(text, str)}
        return replace(reply, **{name: text.replace(key, "***") for name, text in texts.items()}) if key else reply


def _host(url: str) -> str | None:
    """The machine that an address names; None for what is no address."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # a ValueError above 65535
    except ValueError:
        return None
    return None if re.search(r"[\s\x00-\x20]", url) else parts.hostname


_asking: ContextVar[int] = ContextVar("_asking")
"""The index of the conversation that the running task asks."""


def _client(hooks: RequestHooks, timeout: float) -> Any:
    """The client's own HTTP client, which tells ``hooks`` of each attempt (the client repeats some by itself).

    Its timeouts are between two bytes; here ``timeout`` seconds are all that an attempt may take.
    """
    from httpx2 import ConnectError, ConnectTimeout, PoolTimeout, ReadTimeout
    from openai import DefaultAsyncHttpxClient

    class Client(DefaultAsyncHttpxClient):
        async def send(self, request: Any, **kwargs: Any) -> Any:
            index = _asking.get()
            await hooks.sending(index)
            try:
                async with asyncio.timeout(timeout):
                    response = await super().send(request, **kwargs)
            except TimeoutError:
                hooks.lost(index, "timeout")
                raise ReadTimeout(f"no whole reply in {timeout} s", request=request) from None
            except (ConnectError, ConnectTimeout, PoolTimeout) as problem:
                hooks.refused(index, type(problem).__name__)
                raise
            except BaseException as problem:
                hooks.lost(index, type(problem).__name__)
                raise
            if response.is_error:
                hooks.refused(index, f"status {response.status_code}")
            return response

    return Client()


def _reply(completion: object, max_tokens: int) -> Reply:
    """The client does not validate what it receives, so nothing about its shape may be taken for granted."""
    try:
        choice = completion.choices[0]  # type: ignore[attr-defined]
        text, reason = choice.message.content, choice.finish_reason
    except (AttributeError, LookupError, TypeError):
        return Reply(None, f"the endpoint's answer is not a chat completion: {str(completion)[:120]!r}")
    usage, model = getattr(completion, "usage", None), getattr(completion, "model", None)
    counts = {name: getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
    known: Any = {name: n if isinstance(n, int) and n > 0 else 0 for name, n in counts.items()}
    known["model"] = model if isinstance(model, str) else ""
    if reason == "length":
        raw = text if isinstance(text, str) else ""
        return Reply(None, f"the answer was cut off at {max_tokens} tokens", raw=raw, **known)
    if not isinstance(text, str) or not text.strip():
        return Reply(None, f"the answer is empty (finish reason {reason!r})", **known)
    return Reply(text, None, **known)


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
    temperature: _Amount = Field(0.0, description="0 for the most likely verdict")
    max_tokens: PositiveInt = Field(1024, description="of a reply; one that is longer is cut off, which is a failure")
    concurrency: PositiveInt = Field(8, description="requests that are open at once, in each process")
    attempts: PositiveInt = Field(6, description="how often a request is sent before it is given up")
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(120.0, description="seconds for one attempt")
    price_in: _Amount | None = Field(None, description="price of a million prompt tokens")
    price_out: _Amount | None = Field(None, description="price of a million tokens of replies")
    max_cost: _Amount | None = Field(None, description="most that the run may spend, in the prices' currency")
    _ledger: Ledger | None = PrivateAttr(None)

    @property
    def label(self) -> str:
        """The model's name, as a file may be called."""
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.model)

    @property
    def statement(self) -> str:
        return self._stated(
            f"{self.model} (temperature {self.temperature:g}), asked through an OpenAI-compatible endpoint"
        )

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
    claims: Claims
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
