"""Preference triples: load, validate, split by prompt, nested budgets with a content hash, contamination check."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from harness.data.preferences import COLUMNS, Preference, read_preference
from harness.data.sources import Rows, read_rows
from harness.data.turns import ROLES, Conversation, Message, conversation, read_prompt

__all__ = ["ROLES", "Conversation", "Message", "conversation", "read_prompt"]  # from harness.data.turns
__all__ += [
    "Budget",
    "Preferences",
    "Triple",
    "TripleFile",
    "contaminated",
    "distinct",
    "draw_budget",
    "in_drawn_order",
]
__all__ += ["load_triples", "normal", "prompt_count", "split_budget", "split_by_prompt", "triples_hash"]
__all__ += ["with_preferences"]


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


@dataclass(frozen=True)
class TripleFile:
    """The triples of a file, folder or dataset in its order, with the place of each.

    ``refused``: (number, why) of the rows that are no triple, where they were asked to be left out. ``cut_from_text``:
    the numbers of those without a prompt of their own (see `harness.data.preferences.Preference`).
    """

    rows: Rows
    numbered: tuple[tuple[int, Triple], ...]
    refused: tuple[tuple[int, str], ...] = ()
    cut_from_text: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: str | Path, *, skip_bad: bool = False) -> "TripleFile":
        """Read ``path`` (see `harness.data.sources`), whose rows are in any form of `harness.data.preferences`.

        Raises ValueError naming file and line (or row) of the first row that is no triple, and how many there are;
        with ``skip_bad`` only where no row is one.
        """
        rows = read_rows(path, "triples", COLUMNS)
        numbered, refused, cut = [], [], []
        for number, row in rows.rows:
            try:
                found = read_preference(row)
            except ValueError as problem:
                refused.append((number, str(problem)))
                continue
            numbered.append((number, _triple(found, row.get("source"))))
            if found.cut_from_text:
                cut.append(number)
        if refused and not (skip_bad and numbered):
            raise ValueError(_refusal(rows, refused))
        return cls(rows, tuple(numbered), tuple(refused), tuple(cut))

    @property
    def triples(self) -> list[Triple]:
        """All of them, repetitions too."""
        return [triple for _, triple in self.numbered]

    @property
    def distinct(self) -> dict[int, Triple]:
        """Number -> triple of each triple where it comes first."""
        first: dict[str, tuple[int, Triple]] = {}
        for number, triple in self.numbered:
            first.setdefault(triple.key, (number, triple))
        return dict(first.values())

    def named(self, numbers: Sequence[int], shown: int = 3) -> str:
        """``lines 4, 7, 9 and 12 more``."""
        more = "" if len(numbers) <= shown else f" and {len(numbers) - shown} more"
        plural = "" if len(numbers) == 1 else "s"
        return f"{self.rows.unit}{plural} {', '.join(map(str, numbers[:shown]))}{more}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for whoever fits on it: on repetitions, and on prompts that were cut from texts."""
        found = [self._repetitions, self._cut]
        return tuple(note for note in found if note is not None)

    @property
    def _repetitions(self) -> str | None:
        first: dict[str, int] = {}
        repeated: list[tuple[int, int]] = []
        for number, triple in self.numbered:
            earlier = first.setdefault(triple.key, number)
            if earlier != number:
                repeated.append((number, earlier))
        if not repeated:
            return None
        shown = ", ".join(f"{line} (as {earlier})" for line, earlier in repeated[:3])
        more = "" if len(repeated) <= 3 else f" and {len(repeated) - 3} more"
        return (
            f"{Path(self.rows.name).name}: {len(repeated)} of {len(self.numbered)} triples repeat an earlier one and "
            f"count once, so that there are {len(first)}; {self.rows.unit}s {shown}{more}"
        )

    @property
    def _cut(self) -> str | None:
        if not self.cut_from_text:
            return None
        first = dict(self.numbered)[self.cut_from_text[0]]
        count = len(self.cut_from_text)
        return (
            f"{Path(self.rows.name).name}: triples without a prompt of their own: {count}; the words that both "
            f"answers begin with are the user's turn ({self.named(self.cut_from_text)}; first: "
            f"{first.prompt[-1]['content'][:60]!r})"
        )


def _triple(found: Preference, source: object) -> Triple:
    return Triple(found.prompt, found.chosen, found.rejected, "" if source is None else str(source))


def _refusal(rows: Rows, refused: Sequence[tuple[int, str]]) -> str:
    (number, problem), *others = refused
    text = f"{rows.place(number)}: {problem}"
    if not others:
        return text
    also = ", ".join(str(number) for number, _ in others[:3]) + (", ..." if len(others) > 3 else "")
    return (
        f"{text}\n{len(refused)} of {len(rows.rows)} {rows.unit}s are refused (also {also}); mend them, or let "
        "`dspa-bench data split FILE --bad-rows skip` write the others"
    )


def load_triples(path: str | Path) -> list[Triple]:
    """The triples of a file, folder or dataset (see `TripleFile.read`, which also says what is raised).

    Of JSONL with ``prompt`` (string or list of messages), ``chosen``, ``rejected`` and optionally ``source``, or of any
    other form in docs/data.md. Repetitions are kept: see `distinct`.
    """
    return TripleFile.read(path).triples


def distinct(triples: Iterable[Triple]) -> list[Triple]:
    """Each triple once, where it comes first; the same prompt and answers are one, whatever their ``source``."""
    first: dict[str, Triple] = {}
    for triple in triples:
        first.setdefault(triple.key, triple)
    return list(first.values())


def triples_hash(triples: Iterable[Triple], *, in_order: bool = False) -> str:
    """sha256 (hex) over the triples' keys: whatever their order, or ``in_order`` where the order matters too."""
    keys = [triple.key for triple in triples]
    return hashlib.sha256("\n".join(keys if in_order else sorted(keys)).encode()).hexdigest()


@dataclass(frozen=True)
class Budget:
    """The triples a method may see: the same subset in the same order for every method at (size, seed)."""

    triples: tuple[Triple, ...]
    seed: int

    def __repr__(self) -> str:
        return f"<Budget of {len(self.triples)} triples, seed {self.seed}>"

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
    ranked = in_drawn_order(set(prompts), seed)
    if len(ranked) < 2:
        raise ValueError(
            f"{len(triples)} triples on {len(ranked)} prompt cannot be split by prompt; it takes 2 prompts"
        )
    chosen = set(ranked[: min(max(round(held_out * len(ranked)), 1), len(ranked) - 1)])
    parts: tuple[list[Triple], list[Triple]] = ([], [])
    for triple, prompt in zip(triples, prompts, strict=True):
        parts[prompt in chosen].append(triple)
    return parts


def in_drawn_order(keys: Iterable[str], seed: int) -> list[str]:
    """``keys`` in an order that ``seed`` and each of them decide, whatever the others are."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def prompt_count(triples: Iterable[Triple]) -> int:
    """How many different prompts there are, up to case and spacing."""
    return len({_prompt_key(triple) for triple in triples})


def _prompt_key(triple: Triple) -> str:
    return json.dumps([[m["role"], normal(m["content"])] for m in triple.prompt])


Preferences = Literal["given", "swapped", "shuffled"]
"""Which answers count as chosen: those of the data, the rejected ones, or the rejected ones in a random half."""


def with_preferences(triples: Sequence[Triple], preferences: Preferences, seed: int) -> tuple[Triple, ...]:
    """The triples in their order, for controls: chosen and rejected ``swapped`` in all, or ``shuffled``, which is
    swapped in half of them (rounded down), drawn by ``seed`` and content."""
    swapped: set[str] = set()
    if preferences != "given":
        ranked = in_drawn_order((t.key for t in triples), seed)
        swapped = set(ranked if preferences == "swapped" else ranked[: len(ranked) // 2])
    return tuple(Triple(t.prompt, t.rejected, t.chosen, t.source) if t.key in swapped else t for t in triples)


def contaminated(triples: Iterable[Triple], evaluation_prompts: Iterable[str]) -> list[str]:
    """Evaluation prompts that also occur, up to case and spacing, as a user turn of a training prompt."""
    seen = {normal(m["content"]) for t in triples for m in t.prompt if m["role"] == "user"}
    return sorted({p for p in evaluation_prompts if normal(p) in seen})


def normal(text: str) -> str:
    """``text`` without differences in case and spacing."""
    return " ".join(text.lower().split())
