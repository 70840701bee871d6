"""The store of a benchmark's answers: the one cache that resuming, a second judge and a reader of records look into.

A file of JSON lines, appended a batch at a time and synced. An answer's line holds its key and the fields of a
`Completion`; a batch ends with the line ``{"batch": number of its answers, "tally": ...}``, where the tally is what the
steering session counted meanwhile (null where nothing was). Lines behind the last end of a batch are those of a killed
process: they are not read, and cut off by whoever appends next.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.data.triples import Conversation
from harness.responder import Completion
from harness.seals import read_line, sealed_line


def answer_key(
    fingerprint: str, conversation: Conversation, *, temperature: float, seed: int, max_new_tokens: int
) -> str:
    """sha256 (hex) of what decides an answer: the model, what it is asked, and the settings of its generation."""
    settings = {"temperature": float(temperature), "seed": seed, "max_new_tokens": max_new_tokens}
    messages = [[message["role"], message["content"]] for message in conversation]
    return hashlib.sha256(json.dumps([fingerprint, messages, settings]).encode()).hexdigest()


class AnswerStore:
    """The answers in the file ``path``, which need not exist yet. One process at a time may append.

    store = RunFolder("runs/sandbox").cell("dspa__n300__s0").answers("mt_bench")
    store[record.raw["answer_key"]].text

    The file is read when it is first asked for something; ValueError naming file:line when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Completion] = {}
        self._batches: list[tuple[set[str], dict[str, Any] | None]] = []
        self._cut = False

    def get(self, key: str) -> Completion | None:
        """The answer with this key; None where there is none."""
        _ = self._size
        return self._found.get(key)

    def __getitem__(self, key: str) -> Completion:
        """The answer with this key; ValueError where there is none."""
        found = self.get(key)
        if found is None:
            raise ValueError(f"{self.path}: there is no answer with the key {key!r}; rerun the suite")
        return found

    def tallies(self, keys: Collection[str]) -> list[dict[str, Any]]:
        """The tallies of the batches that any of the answers ``keys`` came in, in the order they were generated in."""
        _ = self._size
        return [tally for made, tally in self._batches if tally is not None and not made.isdisjoint(keys)]

    def append(self, answers: Mapping[str, Completion], tally: dict[str, Any] | None) -> None:
        """Add one batch of answers by their keys. When this returns they are on disk."""
        lines: list[dict[str, Any]] = []
        for key, completion in answers.items():
            fields = asdict(completion)
            if fields.pop("error") is not None:
                raise ValueError(f"{self.path}: an error is no answer: {completion.error}")
            lines.append({**fields, "key": key})
        lines.append({"batch": len(answers), "tally": tally})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if not self._cut:
                file.truncate(self._size)
                self._cut = True
            file.write(b"".join(map(sealed_line, lines)))
            file.flush()
            os.fsync(file.fileno())
        self._remember({key: replace(completion, key=key) for key, completion in answers.items()}, tally)

    def _remember(self, answers: Mapping[str, Completion], tally: dict[str, Any] | None) -> None:
        self._found.update(answers)
        self._batches.append((set(answers), tally))

    @cached_property
    def _size(self) -> int:
        """Read the file; bytes up to the end of its last complete batch."""
        if not self.path.is_file():
            return 0
        end = position = 0
        answers: dict[str, Completion] = {}
        damage: str | None = None  # of a line that may still turn out to be behind the last end of a batch
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], 1):
            position += len(line) + 1
            try:
                row = read_line(line)
                if "batch" not in row:
                    answers[row["key"]] = _completion(row)
                    continue
                if damage is None and len(answers) != row["batch"]:
                    raise ValueError(f"a batch of {row['batch']} answers ends, and {len(answers)} are there")
                tally = row["tally"]
            except (ValueError, TypeError, KeyError) as problem:
                damage = damage or f"{self.path}:{number}: damaged: {problem}"
                continue
            if damage is not None:
                break
            self._remember(answers, tally)
            end, answers = position, {}
        else:
            return end
        raise ValueError(f"{damage}; rerun the suite, which makes it again")


def _completion(row: dict[str, Any]) -> Completion:
    """Of a line; one of before edits were noted says nothing of them."""
    tokens, edited = tuple(row["token_ids"]), row.get("edited")
    parts = None if edited is None else tuple((int(start), int(end)) for start, end in edited)
    return Completion(**{**row, "token_ids": tokens, "edited": parts})
