"""Running another package without its progress bars, warnings, log lines and logging set-up."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hide what a package writes to stderr and logs below ERROR; exceptions pass through as ever.

    The root logger comes back as it was: alpaca_eval sets its level on import, and `logging.warning` without
    any handler installs one, here on a stream that is gone afterwards.
    """
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def hiding_deprecations() -> Iterator[None]:
    """Hide that TRL and PEFT use names of transformers' that are about to go; no user can mend it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        yield


def without_progress_bars() -> None:
    """From now on no progress bars of transformers, where stderr is not a terminal."""
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
