"""SIGTERM, by which SLURM, Kubernetes and Ray end a process, ends a command as Ctrl-C does: cleanly."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as shells have it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever cleans up after Ctrl-C cleans up after it."""


@contextmanager
def exit_code_of_sigterm() -> Iterator[None]:
    """In the block a first SIGTERM raises `Terminated`, and the block then ends with exit code 143 (SystemExit).

    A second one is ignored: the cleaning up is under way, and SIGKILL is there for who cannot wait. Without effect
    outside the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated("terminated")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if came:
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
