"""A chat model behind an OpenAI-compatible endpoint: many conversations in, one reply each, in order."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from harness.preferences import Message


@dataclass(frozen=True)
class Reply:
    """What came back for one conversation: ``text``, or None and the ``error`` that says why.

    ``prompt_tokens`` and ``completion_tokens`` are what the endpoint counted (0 where it does not say).
    """

    text: str | None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class ChatEndpoint:
    """``model`` at ``base_url`` (e.g. https://api.openai.com/v1 or a local server's /v1).

    The key is read from the environment variable ``api_key_env`` when requests are made, and kept nowhere; servers
    that need none work without it. At most ``concurrency`` requests are open at once. Timeouts, lost connections, 429
    and 5xx are tried up to ``attempts`` times, with a growing and jittered pause, or the one that the server asks for.
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
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {self.base_url!r} is no address; give one such as http://localhost:8000/v1")
        if not self.model:
            raise ValueError("the endpoint needs the name of a model")
        if min(self.max_tokens, self.concurrency, self.attempts) < 1 or self.timeout <= 0 or self.temperature < 0:
            raise ValueError(
                "max_tokens, concurrency and attempts must be at least 1, timeout above 0 and temperature not below 0"
            )

    def ask_all(self, conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        """A reply to each conversation, in order. What went wrong with one is in its ``error``; nothing is raised."""
        return asyncio.run(self._ask_all(conversations))

    async def _ask_all(self, conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        from openai import AsyncOpenAI

        # The client wants some key; a server that checks it refuses this one, which is then the reply's error.
        key = os.environ.get(self.api_key_env) or "none"
        gate = asyncio.Semaphore(self.concurrency)
        async with AsyncOpenAI(
            base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=self.attempts - 1
        ) as client:

            async def ask(conversation: Sequence[Message]) -> Reply:
                async with gate:
                    return await self._ask(client, conversation, key)

            return list(await asyncio.gather(*map(ask, conversations)))

    async def _ask(self, client, conversation: Sequence[Message], key: str) -> Reply:
        from openai import OpenAIError

        messages = [{"role": message["role"], "content": message["content"]} for message in conversation]
        try:
            completion = await client.chat.completions.create(
                model=self.model, messages=messages, temperature=self.temperature, max_tokens=self.max_tokens
            )
        except OpenAIError as problem:
            # Some servers repeat the key they were sent in their complaint.
            return Reply(None, f"{type(problem).__name__}: {problem}".replace(key, "***"))
        except ValueError as problem:  # a body that says it is JSON and is not
            return Reply(None, f"the endpoint's answer is not valid JSON: {problem}")
        return _reply(completion, self.max_tokens)


def _reply(completion: object, max_tokens: int) -> Reply:
    """The client does not validate what it receives, so nothing about its shape may be taken for granted."""
    try:
        choice = completion.choices[0]  # type: ignore[attr-defined]
        text, reason = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError):
        return Reply(None, f"the endpoint's answer is not a chat completion: {str(completion)[:120]!r}")
    usage = getattr(completion, "usage", None)
    tokens = (getattr(usage, "prompt_tokens", None) or 0, getattr(usage, "completion_tokens", None) or 0)
    if reason == "length":
        return Reply(None, f"the answer was cut off at {max_tokens} tokens", *tokens)
    if not isinstance(text, str) or not text.strip():
        return Reply(None, f"the answer is empty (finish reason {reason!r})", *tokens)
    return Reply(text, None, *tokens)
