"""A chat model behind an OpenAI-compatible endpoint: many conversations in, one reply each, in order."""

import asyncio
import os
import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.preferences import Message

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NO_KEY = "none"
"""Sent where there is no key, because the client wants one; a server that checks it refuses it."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Reply:
    """What came back for one conversation: ``text``, or None and the ``error`` that says why.

    ``raw`` is what there is of a text that is no use because it was cut off. ``prompt_tokens`` and
    ``completion_tokens`` are what the endpoint counted (0 where it does not say), ``model`` whom it says it asked.
    """

    text: str | None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    raw: str = ""
    model: str = ""


class NotAsked(Exception):
    """A request was not sent; the message says why."""


class Watch:
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
        if key is None and _host(self.base_url) not in LOOPBACK:
            raise ValueError(f"{self.base_url} needs a key: set the environment variable {self.api_key_env}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError(f"the key in {self.api_key_env} has characters that no key has; set it again")

    def ask_all(self, conversations: Sequence[Sequence[Message]], watch: Watch | None = None) -> list[Reply]:
        """A reply to each conversation, in order. What went wrong with one is in its ``error``; nothing is raised."""
        return asyncio.run(self._ask_all(conversations, watch or Watch()))

    async def _ask_all(self, conversations: Sequence[Sequence[Message]], watch: Watch) -> list[Reply]:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        unanswered = 0  # conversations in succession
        async with AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key() or NO_KEY,
            timeout=self.timeout,
            http_client=_watched_client(watch, self.timeout),
        ) as client:

            async def ask(index: int, conversation: Sequence[Message]) -> Reply:
                nonlocal unanswered
                async with gate:
                    reply = await watch.ready(index)
                    if reply is not None:
                        return reply
                    _asking.set(index)
                    attempts = self.attempts if unanswered < self.concurrency else 1
                    reply, silent = await self._ask(client.with_options(max_retries=attempts - 1), conversation)
                    unanswered = unanswered + 1 if silent else 0
                    watch.came(index, reply)
                    return reply

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(ask(index, c)) for index, c in enumerate(conversations)]
            except BaseExceptionGroup as problems:  # the watch could not go on, such as on a full disk
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
        if key is None:
            return reply
        texts = {"text": reply.text, "error": reply.error, "raw": reply.raw, "model": reply.model}
        return replace(reply, **{name: text and text.replace(key, "***") for name, text in texts.items()})


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


_asking: ContextVar[int] = ContextVar("_asking")
"""The index of the conversation that the running task asks."""


def _watched_client(watch: Watch, timeout: float) -> Any:
    """The client's own HTTP client, which tells ``watch`` of each attempt (the client repeats some by itself).

    Its timeouts are between two bytes; here ``timeout`` seconds are all that an attempt may take.
    """
    from httpx2 import ConnectError, ConnectTimeout, PoolTimeout, ReadTimeout
    from openai import DefaultAsyncHttpxClient

    class Watched(DefaultAsyncHttpxClient):
        async def send(self, request: Any, **kwargs: Any) -> Any:
            index = _asking.get()
            await watch.sending(index)
            try:
                async with asyncio.timeout(timeout):
                    response = await super().send(request, **kwargs)
            except TimeoutError:
                watch.lost(index, "timeout")
                raise ReadTimeout(f"no whole reply in {timeout} s", request=request) from None
            except (ConnectError, ConnectTimeout, PoolTimeout) as problem:
                watch.refused(index, type(problem).__name__)
                raise
            except BaseException as problem:
                watch.lost(index, type(problem).__name__)
                raise
            if response.is_error:
                watch.refused(index, f"status {response.status_code}")
            return response

    return Watched()


def _reply(completion: object, max_tokens: int) -> Reply:
    """The client does not validate what it receives, so nothing about its shape may be taken for granted."""
    try:
        choice = completion.choices[0]  # type: ignore[attr-defined]
        text, reason = choice.message.content, choice.finish_reason
    except (AttributeError, LookupError, TypeError):
        return Reply(None, f"the endpoint's answer is not a chat completion: {str(completion)[:120]!r}")
    usage, model = getattr(completion, "usage", None), getattr(completion, "model", None)
    known = {
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "completion_tokens": _count(usage, "completion_tokens"),
        "model": model if isinstance(model, str) else "",
    }
    if reason == "length":
        raw = text if isinstance(text, str) else ""
        return Reply(None, f"the answer was cut off at {max_tokens} tokens", raw=raw, **known)
    if not isinstance(text, str) or not text.strip():
        return Reply(None, f"the answer is empty (finish reason {reason!r})", **known)
    return Reply(text, None, **known)


def _count(usage: object, name: str) -> int:
    count = getattr(usage, name, None)
    return count if isinstance(count, int) and count > 0 else 0
