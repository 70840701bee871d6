"""SIGTERM, by which SLURM, Kubernetes and Ray end a process, ends a command as Ctrl-C does: cleanly, and never in the
middle of what cannot be broken into."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as shells have it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever cleans up after Ctrl-C cleans up after it."""


class Ending:
    """In its block a first signal ``number`` raises ``exception``, and ``came`` is True from then on.

    Later ones are ignored: the cleaning up is under way, and SIGKILL is there for who cannot wait. Where the exception
    is lost, because a destructor or a weak reference's callback was just running, it is raised again a moment later.
    For the main thread, which alone gets signals. A process that ends with it has `begin` instead of a block.
    """

    def __init__(self, number: int, exception: BaseException) -> None:
        self.came = False
        self._number, self._exception = number, exception

    def __enter__(self) -> "Ending":
        return self.begin()

    def begin(self) -> "Ending":
        """From now on, for good."""
        self._before = signal.signal(self._number, self._end), sys.unraisablehook
        sys.unraisablehook = self._lost
        return self

    def __exit__(self, *_: object) -> None:
        handler, sys.unraisablehook = self._before
        signal.signal(self._number, handler)

    def _end(self, *_: object) -> None:
        self.came = True
        signal.signal(self._number, signal.SIG_IGN)
        raise self._exception

    def _lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_value is not self._exception:
            self._before[1](unraisable)
            return
        signal.signal(self._number, self._end)
        again = threading.Timer(0.01, signal.pthread_kill, (threading.get_ident(), self._number))
        again.daemon = True
        again.start()


@contextmanager
def exit_code_of_sigterm() -> Iterator[None]:
    """In the block a first SIGTERM raises `Terminated` (see `Ending`), and the block then ends with exit code 143
    (SystemExit). Without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with Ending(signal.SIGTERM, Terminated("terminated")) as ending:
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            if ending.came:
                raise SystemExit(TERMINATED) from None
            raise


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
