"""A short series of kills at random moments; `make attack` has the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_runs_that_are_killed_become_what_an_uninterrupted_run_is():
    # In a process of its own: it forks, which a process with threads had better not.
    command = [sys.executable, "-m", "tests.attack.kill_series", "3", "2", "0"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "('kill -9, one process', 3, 3, 0, 0)" in done.stdout
    assert "('SIGTERM, one process', 2, 2, 0, 0)" in done.stdout
