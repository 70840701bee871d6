"""Eight processes share a run and ten of them are killed; in `make test-scale`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.scale
def test_eight_processes_of_which_ten_are_killed_make_what_one_process_makes():
    command = [sys.executable, "-m", "tests.attack.share_series", "10"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "('eight shards', 10, 10, 0, 0)" in done.stdout
    assert "('eight of the whole suite', 10, 10, 0, 0)" in done.stdout
