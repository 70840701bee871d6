"""FastChat's OpenAI server beside pydantic 2."""

import json
from typing import Any

from fastchat.protocol import openai_api_protocol


def mend_chunks() -> None:
    """Let the server write the pieces of a stream: fschat 0.2.36 does it by a call that pydantic 2 refuses."""
    for chunk in (openai_api_protocol.ChatCompletionStreamResponse, openai_api_protocol.CompletionStreamResponse):
        chunk.json = _json  # type: ignore[method-assign]


def _json(self: Any, *, ensure_ascii: bool, **options: Any) -> str:
    return json.dumps(self.model_dump(mode="json", **options), ensure_ascii=ensure_ascii)
