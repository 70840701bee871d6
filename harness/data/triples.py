"""Preference triples: load, validate, split by prompt, nested budgets with a content hash, contamination check."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

from harness.files import read_jsonl


class Message(TypedDict):
    """One turn; ``role`` is system, user or assistant."""

    role: str
    content: str


Conversation = tuple[Message, ...]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Triple:
    """(x, y+, y-): a conversation that ends with a user turn, a chosen and a rejected answer to it."""

    prompt: Conversation
    chosen: str
    rejected: str
    source: str = ""

    @cached_property
    def key(self) -> str:
        """Content hash (sha256, hex); the identity that subsets are drawn and compared by."""
        content = json.dumps([self.prompt, self.chosen, self.rejected], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def conversation(prompt: str | Sequence[Message]) -> Conversation:
    """A string is one user turn; a list of messages is taken as it is."""
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    return tuple(Message(role=m["role"], content=m["content"]) for m in prompt)


def load_triples(path: str | Path) -> list[Triple]:
    """Read JSONL with ``prompt`` (string or list of messages), ``chosen``, ``rejected`` and optionally ``source``.

    Raises ValueError naming file:line for the first malformed line. Repetitions are kept: see `distinct`.
    """
    return [triple for _, triple in _numbered(path)]


def distinct(triples: Iterable[Triple]) -> list[Triple]:
    """Each triple once, where it comes first; the same prompt and answers are one, whatever their ``source``."""
    first: dict[str, Triple] = {}
    for triple in triples:
        first.setdefault(triple.key, triple)
    return list(first.values())


def repetitions(path: str | Path) -> str | None:
    """A sentence on the lines of a triples file that repeat an earlier one, for whoever fits on it; None without any.

    Raises ValueError as `load_triples` does.
    """
    first: dict[str, int] = {}
    repeated: list[tuple[int, int]] = []
    numbered = _numbered(path)
    for number, triple in numbered:
        earlier = first.setdefault(triple.key, number)
        if earlier != number:
            repeated.append((number, earlier))
    if not repeated:
        return None
    shown = ", ".join(f"{line} (as {earlier})" for line, earlier in repeated[:3])
    more = "" if len(repeated) <= 3 else f" and {len(repeated) - 3} more"
    return (
        f"{Path(path).name}: {len(repeated)} of {len(numbered)} triples repeat an earlier one and count once, so that "
        f"there are {len(first)}; lines {shown}{more}"
    )


def _numbered(path: str | Path) -> list[tuple[int, Triple]]:
    """(line number, triple) of a file."""
    triples = []
    for number, row in read_jsonl(path, "triples"):
        try:
            triples.append((number, _triple(row)))
        except ValueError as problem:
            raise ValueError(f"{path}:{number}: {problem}") from None
    return triples


def _triple(row: dict[str, Any]) -> Triple:
    for key in ("prompt", "chosen", "rejected"):
        if key not in row:
            raise ValueError(f"missing key {key!r}; a triple has prompt, chosen, rejected (and optionally source)")
    for key in ("chosen", "rejected"):
        if not isinstance(row[key], str):
            raise ValueError(f"{key!r} must be a string, got {type(row[key]).__name__}")
        if not row[key].strip():
            raise ValueError(f"{key!r} is empty")
    if row["chosen"] == row["rejected"]:
        raise ValueError("'chosen' equals 'rejected': the triple states no preference")
    return Triple(read_prompt(row["prompt"]), row["chosen"], row["rejected"], str(row.get("source", "")))


def read_prompt(value: Any) -> Conversation:
    """A file's ``prompt``, a string or a list of messages that ends with a user turn; ValueError for anything else."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("'prompt' is empty")
        return conversation(value)
    if not isinstance(value, list) or not value:
        raise ValueError("'prompt' must be a string or a non-empty list of {role, content} messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"'prompt'[{index}] must be an object with role and content strings")
        if message.get("role") not in ROLES:
            raise ValueError(f"'prompt'[{index}] has role {message.get('role')!r}; allowed: {', '.join(ROLES)}")
    if value[-1]["role"] != "user":
        raise ValueError(f"'prompt' must end with a user turn, it ends with {value[-1]['role']!r}")
    return conversation(value)


def triples_hash(triples: Iterable[Triple], *, in_order: bool = False) -> str:
    """sha256 (hex) over the triples' keys: whatever their order, or ``in_order`` where the order matters too."""
    keys = [triple.key for triple in triples]
    return hashlib.sha256("\n".join(keys if in_order else sorted(keys)).encode()).hexdigest()


@dataclass(frozen=True)
class Budget:
    """The triples a method may see: the same subset in the same order for every method at (size, seed)."""

    triples: tuple[Triple, ...]
    seed: int

    @property
    def hash(self) -> str:
        """The triples' `triples_hash` in order."""
        return triples_hash(self.triples, in_order=True)


def draw_budget(triples: Sequence[Triple], size: int, seed: int) -> Budget:
    """The first ``size`` triples in an order fixed by ``seed`` and content alone, so smaller budgets are nested.

    Neither the file's order nor other triples influence which of two triples comes first. A triple that is given twice
    is one.
    """
    if size < 1:
        raise ValueError(f"budget {size} is too small: it is a number of triples, at least 1")
    different = distinct(triples)
    if size > len(different):
        counted = "" if len(different) == len(triples) else f", the {len(triples) - len(different)} repeated ones once"
        raise ValueError(f"budget {size} is larger than the data: {len(different)} triples{counted}")
    ranked = sorted(different, key=lambda t: hashlib.sha256(f"{seed}:{t.key}".encode()).digest())
    return Budget(tuple(ranked[:size]), seed)


def split_by_prompt(triples: Sequence[Triple], held_out: float, seed: int) -> tuple[list[Triple], list[Triple]]:
    """(train, held out): about ``held_out`` of the prompts, with all their triples, go to the second list."""
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be in [0, 1), got {held_out}")

    def is_held_out(triple: Triple) -> bool:
        digest = hashlib.sha256(f"{seed}:{json.dumps(triple.prompt, sort_keys=True)}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < held_out * 2**64

    return [t for t in triples if not is_held_out(t)], [t for t in triples if is_held_out(t)]


def split_budget(triples: Sequence[Triple], held_out: float, seed: int) -> tuple[list[Triple], list[Triple]]:
    """(kept, held out): the share ``held_out`` of the prompts, rounded, go to the second list with all their triples.

    Unlike `split_by_prompt` exact for a small number of triples: at least one prompt is on either side, and prompts
    that differ in case and spacing alone are one. Both lists keep the order. ValueError for fewer than two prompts.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be in (0, 1), got {held_out}")
    prompts = [_prompt_key(triple) for triple in triples]
    ranked = sorted(set(prompts), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    if len(ranked) < 2:
        raise ValueError(
            f"{len(triples)} triples on {len(ranked)} prompt cannot be split by prompt; it takes 2 prompts"
        )
    chosen = set(ranked[: min(max(round(held_out * len(ranked)), 1), len(ranked) - 1)])
    parts: tuple[list[Triple], list[Triple]] = ([], [])
    for triple, prompt in zip(triples, prompts, strict=True):
        parts[prompt in chosen].append(triple)
    return parts


def prompt_count(triples: Iterable[Triple]) -> int:
    """How many different prompts there are, up to case and spacing."""
    return len({_prompt_key(triple) for triple in triples})


def _prompt_key(triple: Triple) -> str:
    return json.dumps([[m["role"], _normal(m["content"])] for m in triple.prompt])


Preferences = Literal["given", "swapped", "shuffled"]
"""Which answers count as chosen: those of the data, the rejected ones, or the rejected ones in a random half."""


def with_preferences(triples: Sequence[Triple], preferences: Preferences, seed: int) -> tuple[Triple, ...]:
    """The triples in their order, for controls: chosen and rejected ``swapped`` in all, or ``shuffled``, which is
    swapped in half of them (rounded down), drawn by ``seed`` and content."""
    swapped: set[str] = set()
    if preferences != "given":
        ranked = sorted((t.key for t in triples), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
        swapped = set(ranked if preferences == "swapped" else ranked[: len(ranked) // 2])
    return tuple(Triple(t.prompt, t.rejected, t.chosen, t.source) if t.key in swapped else t for t in triples)


def contaminated(triples: Iterable[Triple], evaluation_prompts: Iterable[str]) -> list[str]:
    """Evaluation prompts that also occur, up to case and spacing, as a user turn of a training prompt."""
    seen = {_normal(m["content"]) for t in triples for m in t.prompt if m["role"] == "user"}
    return sorted({p for p in evaluation_prompts if _normal(p) in seen})


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
