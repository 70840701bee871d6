"""SIGTERM, by which SLURM, Kubernetes and Ray end a process, ends a command as Ctrl-C does: cleanly, and never in the
middle of what cannot be broken into."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def signals_put_off() -> Iterator[None]:
    """SIGINT and SIGTERM that come in the block take effect at its end: for code that is called from where an exception
    ends the process, as what torch asks of a fake tensor is (`std::terminate`). Without effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    with ExitStack() as last:
        last.callback(lambda: [signal.raise_signal(number) for number in came])
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda number, frame: came.append(number))
            last.callback(signal.signal, number, before)
        yield
