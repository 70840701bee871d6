"""Replies of judge models, kept on disk so that no verdict is asked for (and paid for) twice."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.judges.journal import Journal
from harness.preferences import Conversation


def reply_key(identity: Mapping[str, Any], asked: Conversation) -> str:
    """sha256 of who was asked (all settings a reply depends on) and everything that was sent."""
    return hashlib.sha256(json.dumps([identity, asked], sort_keys=True).encode()).hexdigest()


class Replies:
    """replies.jsonl in ``folder``, shared by all processes: key, judge, text, one line as each reply comes."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / "replies.jsonl")
        self._claims = folder / "claims.lock"
        self._texts: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """The text kept under ``key``, as of the last `refresh`."""
        return self._texts.get(key)

    def refresh(self) -> None:
        """Read what other processes added."""
        self._texts |= {row["key"]: row["text"] for row in self._journal.news()}

    def keep(self, key: str, judge: str, text: str) -> None:
        """Add a reply; it is on disk when this returns."""
        self._journal.append({"key": key, "judge": judge, "text": text})
        self._texts[key] = text

    @contextmanager
    def claims(self) -> Iterator["Claims"]:
        """For a batch of questions: lets processes agree who asks which, so that two never pay for the same."""
        self._claims.parent.mkdir(parents=True, exist_ok=True)
        with self._claims.open("a+b") as file:
            yield Claims(file.fileno())


class Claims:
    """One lock byte of a file for each question; the system frees those of a process that dies.

    Record locks belong to a process, so they hold off other processes only.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def take(self, key: str) -> bool:
        """Whether this process now holds the question; False while another one does."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, key: str) -> None:
        """Let others have it."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _place(key))


def _place(key: str) -> int:
    return int(key[:15], 16)
