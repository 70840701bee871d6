"""Worker processes of a run: how one leaves off."""

import os
import subprocess
import sys

LEAVES = """
import os, signal
from harness.experiment.executors.local import _leave_off

signal.signal(signal.SIGTERM, _leave_off)
try:
    os.kill(os.getpid(), signal.SIGTERM)
finally:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    print("cleaned up")
"""


def test_a_second_sigterm_does_not_break_into_a_workers_cleaning_up():
    done = subprocess.run([sys.executable, "-c", LEAVES], env=dict(os.environ), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "cleaned up\n", "")
