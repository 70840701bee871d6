"""Conversations written as one text, as in Anthropic's HH-RLHF: a paragraph that begins with a speaker opens a turn."""

import re
from collections.abc import Sequence

from harness.data.turns import Conversation, Message, conversation

_WHOLE = re.compile(r"Human:.*\n\nAssistant:.*", re.DOTALL)
_PROMPT = re.compile(r"Human:.*\n\nAssistant:", re.DOTALL)
_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Whether ``text`` begins with ``Human:`` and has a turn of ``Assistant:``, as chosen and rejected of HH-RLHF."""
    return _WHOLE.fullmatch(text.strip()) is not None


def is_transcript_prompt(text: str) -> bool:
    """Whether ``text`` begins with ``Human:`` and ends with ``Assistant:``, whose turn is to be made."""
    return _PROMPT.fullmatch(text.strip()) is not None


def transcript_turns(text: str, column: str) -> Conversation:
    """The turns of a transcript; several turns of one speaker in a row (there are some) are one.

    The last turn may be empty. ValueError for any other that is; ``column`` is what it calls the text.
    """
    *parts, last = _SPEAKER.split(text.strip())[1:]
    return _turns([*parts, last], column)


def transcript_prompt(text: str) -> Conversation:
    """The turns in front of the last ``Assistant:``, which is where ``text`` ends; ValueError where the last of them
    is not a user's, or one is empty."""
    turns = _turns(_SPEAKER.split(text.strip())[1:-2], "prompt")
    if turns[-1]["role"] != "user":
        raise ValueError("the transcript in 'prompt' must end with a turn of Human before the last Assistant:")
    return turns


def _turns(parts: Sequence[str], column: str) -> Conversation:
    """The turns of (speaker, what is said, speaker, what is said, ...)."""
    turns: list[Message] = []
    for number, (speaker, said) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
        role, said = _ROLES[speaker], said.strip()
        if not said and 2 * number < len(parts):
            raise ValueError(f"a turn of the transcript in {column!r} is empty")
        if said and turns and turns[-1]["role"] == role:
            turns[-1] = Message(role=role, content=f"{turns[-1]['content']}\n\n{said}")
        else:
            turns.append(Message(role=role, content=said))
    return conversation(turns)
