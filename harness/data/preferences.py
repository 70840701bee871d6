"""What a row of a preference file says, in any of the forms that are in use: its prompt and the two answers to it.

The forms are TRL's (https://huggingface.co/docs/trl/dataset_formats), UltraFeedback's (``prompt`` as text beside whole
conversations) and HH-RLHF's (transcripts). TRL's own `extract_prompt` takes a row for good whatever is in it: two
conversations that part before the last turn give it answers of several turns. So it is what tests compare with.
"""

from dataclasses import dataclass
from typing import Any

from harness.data.transcripts import is_transcript, transcript_turns
from harness.data.turns import Conversation, conversation, read_messages, read_prompt

COLUMNS = ("prompt", "chosen", "rejected", "source")
"""What is read of a row; other columns are not looked at."""
ALLOWED = (
    "a row has prompt, chosen and rejected: prompt as text or as a list of {role, content} messages, chosen and "
    "rejected both as texts or both as lists of messages; without prompt, chosen and rejected are whole conversations "
    "(message lists, or transcripts of Human: and Assistant:) or texts that begin alike"
)


@dataclass(frozen=True)
class Preference:
    """A prompt that ends with a user turn, the chosen answer to it, and the rejected one.

    ``cut_from_text``: there was no prompt, and the beginning that two plain texts share was taken for it.
    """

    prompt: Conversation
    chosen: str
    rejected: str
    cut_from_text: bool = False


def read_preference(row: dict[str, Any]) -> Preference:
    """What ``row`` says; ValueError saying what is wrong, and what is allowed, where that is not clear."""
    for key in ("chosen", "rejected"):
        if key not in row:
            columns = ", ".join(map(repr, row)) or "no keys"
            raise ValueError(f"missing key {key!r} (there is {columns}); {ALLOWED}")
    found = _preference(row.get("prompt"), row["chosen"], row["rejected"])
    for key, text in (("chosen", found.chosen), ("rejected", found.rejected)):
        if not text.strip():
            raise ValueError(f"{key!r} is empty")
    if found.chosen == found.rejected:
        raise ValueError("'chosen' equals 'rejected': the triple states no preference")
    return found


def _preference(prompt: Any, chosen: Any, rejected: Any) -> Preference:
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _of_messages(prompt, read_messages(chosen, "chosen"), read_messages(rejected, "rejected"))
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise ValueError(f"one of 'chosen' and 'rejected' is a list of messages and the other is not; {ALLOWED}")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        key, value = ("rejected", rejected) if isinstance(chosen, str) else ("chosen", chosen)
        raise ValueError(f"{key!r} must be a string, got {type(value).__name__}; {ALLOWED}")
    if prompt is not None:
        return Preference(read_prompt(prompt), chosen, rejected)
    if is_transcript(chosen) and is_transcript(rejected):
        return _parted(transcript_turns(chosen, "chosen"), transcript_turns(rejected, "rejected"))
    if is_transcript(chosen) != is_transcript(rejected):
        raise ValueError(f"one of 'chosen' and 'rejected' is a transcript and the other is not; {ALLOWED}")
    return _of_texts(chosen, rejected)


def _of_messages(prompt: Any, chosen: Conversation, rejected: Conversation) -> Preference:
    """Lists of messages: the answers alone, or whole conversations, which a prompt beside them must belong to."""
    whole = bool(chosen and rejected) and chosen[0]["role"] != "assistant" and rejected[0]["role"] != "assistant"
    if prompt is None:
        return _parted(chosen, rejected)
    turns = read_prompt(prompt)
    if not whole:
        return _parted((*turns, *chosen), (*turns, *rejected))
    found = _parted(chosen, rejected)
    asked = {m["content"].strip() for m in found.prompt if m["role"] == "user"}
    if not {m["content"].strip() for m in turns if m["role"] == "user"} <= asked:
        raise ValueError(
            "'chosen' and 'rejected' are whole conversations, and 'prompt' is no turn of what they share; leave out "
            "'prompt', or give the answers alone"
        )
    return found


def _parted(chosen: Conversation, rejected: Conversation) -> Preference:
    """Two conversations: what they share is the prompt, and each must go on with one turn of the assistant."""
    alike = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        alike += 1
    shared, ends = chosen[:alike], (chosen[alike:], rejected[alike:])
    if not ends[0] and not ends[1]:
        raise ValueError("'chosen' equals 'rejected': the triple states no preference")
    for key, end in zip(("chosen", "rejected"), ends, strict=True):
        roles = ", ".join(message["role"] for message in end) or "nothing"
        if [message["role"] for message in end] != ["assistant"]:
            raise ValueError(
                f"behind what chosen and rejected share (turns: {alike}) {key!r} goes on with {roles}; it must be one "
                "turn of the assistant, so that both answer the same prompt"
            )
    if not shared or shared[-1]["role"] != "user":
        ending = f"end with {shared[-1]['role']!r}" if shared else "are none"
        raise ValueError(f"the turns that 'chosen' and 'rejected' share {ending}; they must end with a user turn")
    return Preference(shared, ends[0][0]["content"], ends[1][0]["content"])


def _of_texts(chosen: str, rejected: str) -> Preference:
    """Plain texts without a prompt (TRL's implicit standard form): the prompt is the beginning that they share, cut
    back to a whole word."""
    alike = next((i for i, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), None)
    if alike is None:  # one begins with the other
        alike = min(len(chosen), len(rejected))
    while alike and not chosen[alike - 1].isspace():
        alike -= 1
    shared = chosen[:alike].rstrip()
    if not shared:
        raise ValueError(f"there is no 'prompt', and chosen and rejected do not begin with the same words; {ALLOWED}")
    return Preference(conversation(shared), chosen[len(shared) :].strip(), rejected[len(shared) :].strip(), True)
