"""Texts as they may stand in a file that others will read: without keys, and without whose machine it was."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from harness.files import write_text

_SECRET = re.compile(r"(^|_|API)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$")
_SHORTEST = 8
"""Characters of a key; what is shorter may be a word that means something else."""


def discreet(text: str) -> str:
    """``text`` without the keys of the environment, and with ``~`` for the home folder."""
    home = os.path.expanduser("~")
    if home not in ("/", "~", ""):
        # Behind another path's end it is a part of that path; behind an option such as -I it is itself.
        text = re.sub(rf"(?:(?<![\w.~-])|(?<=\s-[A-Za-z])){re.escape(home)}(?![\w.-])", "~", text)
    return without_keys(text)


def without_keys(text: str, keys: Iterable[str] = ()) -> str:
    """``text`` with ``***`` for every one of ``keys``, and for what the environment has under a name such as HF_TOKEN.

    Some servers repeat the key they were sent in their complaint.
    """
    held = [value for name, value in os.environ.items() if _SECRET.search(name.upper())]
    parts = {part.strip() for value in (*held, *keys) for part in value.split(",")}
    for key in sorted(parts, key=len, reverse=True):
        text = text.replace(key, "***") if len(key) >= _SHORTEST and not os.path.exists(key) else text
    return text


def make_discreet(file: Path) -> None:
    """The same of a file, which may be missing; bytes that are no text become the character for that."""
    if not file.is_file():
        return
    written = file.read_text(encoding="utf-8", errors="replace")
    text = discreet(written)
    if text != written:
        write_text(file, text)
