"""The program in a child of this process, up to where work would begin, and what it did until then."""

import contextlib
import io
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

WORK = ("harness.experiment.run.run_suite", "harness.experiment.fitting.fit", "harness.experiment.cell.evaluate")
"""Where the work of `run`, `fit` and `eval` begins: what gets there was accepted."""
SECONDS = 60
"""What takes longer hangs: the slowest case takes two."""
MEMORY = 6 * 2**30
"""Bytes that a case may ask for beyond what the process has."""


@dataclass(frozen=True)
class Outcome:
    """``code``: exit code, or the negative number of the signal that ended it. ``written``: files made or changed."""

    code: int
    said: str
    written: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return self.code == 0

    @property
    def refused_well(self) -> bool:
        """With exit code 2 and a message that is no traceback, before anything was written."""
        message = self.said.startswith(("error: ", "Usage: ")) and "Traceback" not in self.said
        return self.code == 2 and message and not self.written and len(self.said) < 4000


class _WorkBegins(BaseException):
    """Raised instead of the work."""


def _begin(*_: object, **__: object) -> None:
    raise _WorkBegins


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """In the block the work of run, fit and eval raises, which `call` takes for exit code 0."""
    with contextlib.ExitStack() as stack:
        for name in WORK:
            stack.enter_context(patch(name, _begin))
        yield


def call(arguments: Sequence[str], watched: Path) -> Outcome:
    """The program in this process, without its work; ``watched`` is the folder in which nothing may be written."""
    from harness.cli.app import main

    before = _state(watched)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", ["dspa-bench", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "dont_write_bytecode", True),
        without_work(),
        contextlib.chdir(watched),
    ):
        try:
            main()
        except _WorkBegins:
            pass
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as problem:  # what main lets through
            code = 1
            err.write(f"Traceback: {type(problem).__name__}: {problem}")
    after = _state(watched)
    written = tuple(sorted(name for name in {*before, *after} if before.get(name) != after.get(name)))
    return Outcome(
        code, "".join(line for line in err.getvalue().splitlines(True) if not line.startswith("note: ")), written
    )


def call_apart(arguments: Sequence[str], watched: Path) -> Outcome:
    """`call` in a child with bounds on seconds and memory, so that nothing stays of it but the outcome."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries in C print
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            outcome = call(arguments, watched)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(outcome, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    content, end = b"", time.monotonic() + SECONDS
    while select.select([reader], [], [], max(0, end - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        content += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return pickle.loads(content) if content else Outcome(status or 1, f"ended without a word ({status})", ())


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> (size, time) of all files in a folder, and of the folders themselves."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            stat = os.lstat(os.path.join(root, name))
            is_file = name in files
            found[os.path.relpath(os.path.join(root, name), folder)] = (
                (stat.st_size, stat.st_mtime_ns) if is_file else (0, 0)
            )
    return found
