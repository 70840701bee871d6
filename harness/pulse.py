"""Signs that work goes on: whatever takes long says so at each step, and who watches a process can listen.

A step is a forward or training step of a fit, a token or batch of answers, a batch of log-likelihoods or rewards, a
judge's reply or an attempt to get one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listeners: list[Callable[[], object]] = []


def beat() -> None:
    """A step is done."""
    for listener in _listeners:
        listener()


@contextmanager
def heard_by(listener: Callable[[], object]) -> Iterator[None]:
    """In the block ``listener`` is called at each step of this process, in the thread that did it; be it quick."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
