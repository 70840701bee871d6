"""Turns of a conversation, and how files write them."""

from collections.abc import Sequence
from typing import Any, TypedDict


class Message(TypedDict):
    """One turn; ``role`` is system, user or assistant."""

    role: str
    content: str


Conversation = tuple[Message, ...]
ROLES = ("system", "user", "assistant")


def conversation(prompt: str | Sequence[Message]) -> Conversation:
    """A string is one user turn; a list of messages is taken as it is."""
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    return tuple(Message(role=m["role"], content=m["content"]) for m in prompt)


def read_messages(value: Any, column: str) -> Conversation:
    """A file's list of messages in ``column``; ValueError, naming the message, for anything else.

    A system turn is only allowed as the first: chat templates know no other, and some drop it.
    """
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{column!r}[{index}] must be an object with role and content strings")
        if message.get("role") not in ROLES:
            raise ValueError(f"{column!r}[{index}] has role {message.get('role')!r}; allowed: {', '.join(ROLES)}")
        if index and message["role"] == "system":
            raise ValueError(f"{column!r}[{index}] is a system turn; only the first turn may be one")
    return conversation(value)


def read_prompt(value: Any) -> Conversation:
    """A file's ``prompt``, a string or a list of messages that ends with a user turn; ValueError for anything else."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("'prompt' is empty")
        return conversation(value)
    if not isinstance(value, list) or not value:
        raise ValueError("'prompt' must be a string or a non-empty list of {role, content} messages")
    turns = read_messages(value, "prompt")
    if turns[-1]["role"] != "user":
        raise ValueError(f"'prompt' must end with a user turn, it ends with {turns[-1]['role']!r}")
    return turns
