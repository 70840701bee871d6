"""Waiting for other processes, but not for ever."""

import subprocess
import time
from collections.abc import Callable

import pytest


def wait_until(
    condition: Callable[[], bool], *running: subprocess.Popen, log: Callable[[], str] = str, seconds: float = 300.0
) -> None:
    """Return when ``condition()`` holds; fail, and kill what is ``running``, when one of them ends or time is up."""
    end = time.monotonic() + seconds
    while not condition():
        ended = [process.returncode for process in running if process.poll() is not None]
        if ended or time.monotonic() > end:
            for process in running:
                process.kill()
            reason = f"a process ended first, with exit code {ended[0]}" if ended else f"nothing in {seconds} s"
            pytest.fail(f"{reason}\n{log()}")
        time.sleep(0.02)
