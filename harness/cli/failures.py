"""How a command that fails ends: one line on stderr, whatever was raised; tracebacks are for those who ask."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room: the disk, the user's share of it, or the size of one file."""
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
"""What it says of a path that can lead nowhere on any disk."""

_debugging = False


def show_tracebacks(asked: bool) -> None:
    """Whether `one_line` prints the traceback first (``dspa-bench --debug``)."""
    global _debugging
    _debugging = asked


@contextmanager
def one_line() -> Iterator[None]:
    """In the block an exception becomes a message on stderr and the exit code (SystemExit).

    2: a ValueError or a path that cannot be, which are the user's to mend. 1: a full disk, after which nothing
    half-written stays and the same command goes on; and anything else, whose traceback goes to a file of its own that
    the message names.
    """
    try:
        yield
    except Exception as problem:
        if _debugging:
            traceback.print_exc()
        if isinstance(problem, ValueError):
            print(f"error: {_printable(str(problem))}", file=sys.stderr)
            sys.exit(2)
        if isinstance(problem, OSError) and problem.errno in NO_NAME:
            print(f"error: {problem.strerror}: {_cut(str(problem.filename), 100)!r}; give another", file=sys.stderr)
            sys.exit(2)
        if isinstance(problem, OSError) and problem.errno in FULL:
            place = f" ({problem.filename})" if problem.filename else ""
            print(f"error: the disk is full{place}; free some space and give the same command again", file=sys.stderr)
            sys.exit(1)
        print(f"error: {_unexpected(problem)}", file=sys.stderr)
        sys.exit(1)


def _unexpected(problem: Exception) -> str:
    text = _cut(_printable(" ".join(str(problem).split())), 400)
    what = type(problem).__name__ + (f": {text}" if text else "")
    if _debugging:
        return what
    log = _log(problem)
    if log is None:
        return f"{what}; `dspa-bench --debug COMMAND ...` prints the traceback"
    return f"{what}; the traceback is in {log}, and `dspa-bench --debug COMMAND ...` prints it"


def _log(problem: Exception) -> str | None:
    """The file (readable for the user alone) that the traceback was written to; None where none can be."""
    lines = [f"{sys.argv}\n", *traceback.format_exception(problem)]
    try:
        handle, path = tempfile.mkstemp(prefix="dspa-bench-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError:
        return None
    return path


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _printable(text: str) -> str:
    """``text`` without halves of a character, which no terminal can be sent."""
    return text.encode("utf-8", "backslashreplace").decode()
