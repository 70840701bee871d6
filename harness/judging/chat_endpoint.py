"""Models behind an OpenAI-compatible endpoint: the client, which takes nothing that comes back for granted."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.data.triples import Message
from harness.judging.prompted import Reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MOST_BYTES = 4 << 20
"""Of a reply's body, unpacked: several times what the longest completion takes."""
_MOST_SAID = 1000
"""Characters of a server's complaint that are kept."""
_NEW_LIMIT = "max_completion_tokens"
_OF_THE_WIRE = (b"content-encoding", b"content-length", b"transfer-encoding")


class NotAsked(Exception):
    """A request was not sent; the message says why."""


class Unusable(Exception):
    """What came back is of no use, and asking again would bring the same; the message says why."""


class RequestHooks:
    """Sees every request of one `ChatEndpoint.ask_each`, which may be sent several times; this one only looks on.

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
    and 5xx are tried up to ``attempts`` times, with a growing and jittered pause, or the one that the server asks for;
    one that asks for more than two minutes is not asked again. Redirects are not followed, and of a body no more than
    `MOST_BYTES` is read. Models that want ``max_completion_tokens`` in the place of ``max_tokens`` say so, and get it.
    Once as many conversations in succession as may be open have used up their attempts, the others are tried once
    each, until one is answered: a server that is gone or hangs does not hold up everything.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    """None: the request names none."""
    max_tokens: int = 2048
    concurrency: int = 8
    attempts: int = 6
    timeout: float = 120.0
    """Seconds to wait for one reply."""
    whole: bool = True
    """Whether a reply that was cut off or is empty is an error, as a judge's is."""
    _limit: list[str] = field(default_factory=lambda: ["max_tokens"], init=False, repr=False, compare=False)
    """What the model calls ``max_tokens``, last; learned from its refusal."""

    def __post_init__(self) -> None:
        check_address(self.base_url, "the environment variable that api_key_env names")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            # Not repeated either: it may be the key itself.
            raise ValueError("api_key_env must be the name of an environment variable, such as OPENAI_API_KEY")
        if not self.model:
            raise ValueError("the endpoint needs the name of a model")
        if (
            min(self.max_tokens, self.concurrency, self.attempts) < 1
            or self.timeout <= 0
            or (self.temperature or 0) < 0
        ):
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

    def models(self) -> set[str]:
        """The names of the models that the server says it has; ValueError where it does not say."""
        from openai import OpenAI, OpenAIError

        try:
            with OpenAI(
                base_url=self.base_url,
                api_key=self._key() or "none",
                timeout=self.timeout,
                max_retries=self.attempts - 1,
                http_client=bounded_client(),
            ) as client:
                return {str(one.id) for one in client.models.list().data}
        except (OpenAIError, Unusable, ValueError, AttributeError, TypeError) as problem:
            reason = self._failed(f"{type(problem).__name__}: {problem}").error
            raise ValueError(f"the server at {self.base_url} does not list its models: {reason}") from None

    def ask_all(self, conversations: Sequence[Sequence[Message]], hooks: RequestHooks | None = None) -> list[Reply]:
        """A reply to each conversation, in order. What went wrong with one is in its ``error``; nothing is raised."""
        found = dict(self.ask_each(conversations, hooks))
        return [found[index] for index in range(len(conversations))]

    def ask_each(
        self,
        conversations: Sequence[Sequence[Message]],
        hooks: RequestHooks | None = None,
        settings: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[tuple[int, Reply]]:
        """(index, reply) of each conversation as it comes; ``settings`` are further fields of each one's request.

        Whoever leaves off early, or is interrupted, ends what is open. Only what ``hooks`` raise is raised.
        """
        replies = self._ask_each(conversations, hooks or RequestHooks(), settings or [{}] * len(conversations))

        async def next_one() -> tuple[int, Reply] | None:
            return await anext(replies, None)

        with asyncio.Runner() as runner:
            while (found := runner.run(next_one())) is not None:
                yield found

    async def _ask_each(
        self, conversations: Sequence[Sequence[Message]], hooks: RequestHooks, settings: Sequence[Mapping[str, Any]]
    ) -> AsyncIterator[tuple[int, Reply]]:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        unanswered = 0  # conversations in succession
        async with AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key() or "none",  # the client wants one; a server that checks it refuses it
            timeout=self.timeout,
            http_client=_client(hooks, self.timeout),
        ) as client:

            async def ask(index: int) -> tuple[int, Reply]:
                nonlocal unanswered
                async with gate:
                    reply = await hooks.ready(index)
                    if reply is not None:
                        return index, reply
                    _asking.set(index)
                    attempts = self.attempts if unanswered < self.concurrency else 1
                    patient = client.with_options(max_retries=attempts - 1)
                    reply, silent = await self._ask(patient, conversations[index], settings[index])
                    unanswered = unanswered + 1 if silent else 0
                    hooks.came(index, reply)
                    return index, reply

            waiting = {asyncio.create_task(ask(index)) for index in range(len(conversations))}
            try:
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()  # what it raises is the hooks': they could not go on, as on a full disk
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    async def _ask(
        self, client: "AsyncOpenAI", conversation: Sequence[Message], more: Mapping[str, Any]
    ) -> tuple[Reply, bool]:
        """The reply, and whether the server gave none however often it was tried."""
        from openai import APIConnectionError, BadRequestError, InternalServerError, OpenAIError, RateLimitError

        messages: Any = [{"role": message["role"], "content": message["content"]} for message in conversation]
        settings: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        settings |= more
        while True:
            limit = self._limit[-1]
            how: dict[str, Any] = {**settings, limit: self.max_tokens}
            try:
                completion = await client.chat.completions.create(model=self.model, messages=messages, **how)
            except OpenAIError as problem:
                if isinstance(problem, BadRequestError) and limit != _NEW_LIMIT and _NEW_LIMIT in str(problem):
                    self._limit.append(_NEW_LIMIT)
                    continue
                silent = isinstance(problem, APIConnectionError | InternalServerError | RateLimitError)
                return self._failed(f"{type(problem).__name__}: {problem}"), silent
            except (NotAsked, Unusable) as problem:
                return self._failed(str(problem)), False
            except (ValueError, RecursionError) as problem:  # a body that says it is JSON and is not
                return self._failed(f"the endpoint's answer is not valid JSON: {problem}"), False
            return self._without_key(_reply(completion, self.max_tokens, whole=self.whole)), False

    def _failed(self, why: str) -> Reply:
        why = _text(why)  # a server may say what is none
        return self._without_key(Reply(None, why if len(why) <= _MOST_SAID else f"{why[:_MOST_SAID]} ..."))

    def _key(self) -> str | None:
        return os.environ.get(self.api_key_env, "").strip() or None

    def _without_key(self, reply: Reply) -> Reply:
        """Some servers repeat the key they were sent."""
        key = self._key()
        texts = {name: text for name, text in vars(reply).items() if isinstance(text, str)}
        return replace(reply, **{name: text.replace(key, "***") for name, text in texts.items()}) if key else reply


def check_address(url: str, keys: str) -> None:
    """Raise ValueError for what is no address, or may hold a key; ``keys`` is where keys belong."""
    # What may hold one is not repeated in the message: this is where keys are put by mistake.
    if re.search(r"[@?#\s]", url):
        raise ValueError(
            "the address of the endpoint must hold no user, password, '?', '#' or space (it is written to files); "
            f"give a key in {keys}"
        )
    if not url.startswith(("http://", "https://")) or not _host(url):
        raise ValueError(f"endpoint {url!r} is no address; give one such as http://localhost:8000/v1")


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
                    response = await _whole(await super().send(request, **{**kwargs, "stream": True}))
            except TimeoutError:
                hooks.lost(index, "timeout")
                raise ReadTimeout(f"no whole reply in {timeout} s", request=request) from None
            except (ConnectError, ConnectTimeout, PoolTimeout) as problem:
                hooks.refused(index, type(problem).__name__)
                raise
            except BaseException as problem:
                hooks.lost(index, type(problem).__name__)
                raise
            if response.is_error or response.is_redirect:
                hooks.refused(index, f"status {response.status_code}")
            return _checked(response)

    return Client(follow_redirects=False)


async def _whole(response: Any) -> Any:
    """``response`` with its body, unpacked; Unusable when that is longer than any chat completion."""
    body = bytearray()
    try:
        async for part in response.aiter_bytes():
            body += part
            _check_size(len(body))
    finally:
        await response.aclose()
    return _read(response, body)


def _read(response: Any, body: bytearray) -> Any:
    from httpx2 import Response

    kept = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_THE_WIRE]
    return Response(response.status_code, headers=kept, content=bytes(body), request=response.request)


def _checked(response: Any) -> Any:
    if response.is_redirect:
        raise Unusable(f"the endpoint redirects to {_plain(response)}; give that as its address")
    return response


def bounded_client() -> Any:
    """An HTTP client for OpenAI's library that reads no more of a body than `MOST_BYTES` and follows no redirect."""
    from openai import DefaultHttpxClient

    class Client(DefaultHttpxClient):
        def send(self, request: Any, **kwargs: Any) -> Any:
            response = super().send(request, **{**kwargs, "stream": True})
            body = bytearray()
            try:
                for part in response.iter_bytes():
                    body += part
                    _check_size(len(body))
            finally:
                response.close()
            return _checked(_read(response, body))

    return Client(follow_redirects=False)


def _check_size(read: int) -> None:
    """Raise Unusable when ``read`` bytes of a body are more than any chat completion has."""
    if read > MOST_BYTES:
        raise Unusable(f"the endpoint's answer is longer than {MOST_BYTES >> 20} MiB, and was not read to its end")


def _plain(response: Any) -> str:
    """Where a redirect leads, without what may be a key in it."""
    try:
        target = response.request.url.join(response.headers.get("location", ""))
        return repr(f"{target.scheme}://{target.host}{f':{target.port}' if target.port else ''}{target.path}"[:200])
    except Exception:  # the library raises its own for what is no address
        return "what is no address"


def _reply(completion: object, max_tokens: int, *, whole: bool) -> Reply:
    """The client does not validate what it receives, so nothing about its shape may be taken for granted."""
    try:
        choice = completion.choices[0]  # type: ignore[attr-defined]
        text, reason = choice.message.content, choice.finish_reason
    except (AttributeError, LookupError, TypeError):
        shown = _text(str(completion)[:120])
        return Reply(None, f"the endpoint's answer is not a chat completion: {shown!r}")
    model = getattr(completion, "model", None)
    known: Any = _counts(getattr(completion, "usage", None))
    known["model"] = _text(model)[:200] if isinstance(model, str) else ""
    if not whole:
        text, known["finished"] = text or "", reason != "length"
    elif reason == "length":
        raw = _text(text) if isinstance(text, str) else ""
        return Reply(None, f"the answer was cut off at {max_tokens} tokens", raw=raw, **known)
    if text is not None and not isinstance(text, str):
        return Reply(None, f"the answer's content is no text ({type(text).__name__})", **known)
    if whole and (text is None or not text.strip()):
        return Reply(None, f"the answer is empty (finish reason {str(reason)[:40]!r})", **known)
    if text is not None and _text(text) != text:
        return Reply(None, "the answer holds surrogates, which are no characters", raw=_text(text), **known)
    return Reply(text, None, **known)


def _text(text: str) -> str:
    """``text`` as UTF-8 can write it."""
    return text.encode(errors="replace").decode()


def _counts(usage: object) -> dict[str, int]:
    """What the server says it counted; nothing unless it says both, because half a bill is none."""
    names = ("prompt_tokens", "completion_tokens")
    counts = [getattr(usage, name, None) for name in names]
    if any(type(count) is not int or not 0 <= count < 1 << 53 for count in counts) or not sum(counts):  # type: ignore
        return dict.fromkeys(names, 0)
    return dict(zip(names, counts, strict=True))  # type: ignore[arg-type]
