"""What a model answered in a benchmark, kept so that a second judge gets the very same answers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.files import read_jsonl, write_jsonl
from harness.model import AlignedModel, Completion
from harness.preferences import Conversation


class Completions:
    """The completions in the JSONL file ``path``, found by what decides an answer (see `completion_keys`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Completion] = {}

    @classmethod
    def read(cls, path: Path) -> "Completions":
        """What was kept in ``path``; nothing where there is no such file. ValueError for a damaged one (file:line)."""
        kept = cls(path)
        for number, row in read_jsonl(path, "completions") if path.is_file() else ():
            try:
                key = row.pop("key")
                kept._found[key] = Completion(**{**row, "token_ids": tuple(row["token_ids"])})
            except (KeyError, TypeError) as problem:
                raise ValueError(f"{path}:{number}: not a completion ({problem}); remove the file") from None
        return kept

    def get(self, key: str) -> Completion | None:
        return self._found.get(key)

    def keep(self, keys: Sequence[str], completions: Sequence[Completion]) -> None:
        """Add completions and write the file anew."""
        self._found |= dict(zip(keys, completions, strict=True))
        write_jsonl(self.path, ({"key": key, **asdict(completion)} for key, completion in self._found.items()))


def completion_keys(
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    temperature: float | Sequence[float] = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """A key for each conversation, from the arguments of `AlignedModel.generate` (the batch size decides nothing)."""
    many = [temperature] * len(conversations) if isinstance(temperature, int | float) else temperature
    return [
        hashlib.sha256(json.dumps([conversation, float(one), seed, max_new_tokens]).encode()).hexdigest()
        for conversation, one in zip(conversations, many, strict=True)
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Replayed(AlignedModel):
    """Answers with what was kept, and asks the model only for what was not (its answer is the same: seeds decide)."""

    kept: Completions

    @classmethod
    def of(cls, aligned: AlignedModel, kept: Completions) -> "Replayed":
        return cls(**{f.name: getattr(aligned, f.name) for f in fields(AlignedModel)}, kept=kept)

    def generate(self, conversations: Sequence[Conversation], **settings: Any) -> list[Completion]:
        keys = completion_keys(conversations, **settings)
        found = [self.kept.get(key) for key in keys]
        missing = [index for index, completion in enumerate(found) if completion is None]
        if missing:
            temperature = settings.get("temperature", 0.0)
            if not isinstance(temperature, int | float):
                settings = {**settings, "temperature": [temperature[index] for index in missing]}
            answers = super().generate([conversations[index] for index in missing], **settings)
            found = [c if c is not None else answers[missing.index(i)] for i, c in enumerate(found)]
        return [completion for completion in found if completion is not None]
