"""When a signal takes effect, and that it does."""

import os
import signal
import subprocess
import sys
import time
import weakref
from typing import Any

import pytest
from torch import nn

from harness.compute.rates import Rates
from harness.signals import Ending, Terminated, exit_code_of_sigterm, signals_put_off
from tests.conftest import make_model

LEAVES = """
import os, signal
from harness.signals import Ending

Ending(signal.SIGTERM, SystemExit(1)).begin()
try:
    os.kill(os.getpid(), signal.SIGTERM)
finally:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    print("cleaned up")
"""


def test_a_second_signal_does_not_break_into_a_workers_cleaning_up():
    done = subprocess.run([sys.executable, "-c", LEAVES], env=dict(os.environ), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "cleaned up\n", "")


class Held:
    """Can be referred to weakly."""


class Interrupted(Held):
    """Gets a signal when it goes, from where nothing can be raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def in_a_destructor():
    Interrupted()


def in_the_callback_of_a_weak_reference():
    held = Held()
    reference = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGTERM))
    del held
    assert reference() is None


@pytest.mark.parametrize("interrupted", [in_a_destructor, in_the_callback_of_a_weak_reference])
def test_an_ending_that_is_lost_comes_again_a_moment_later(interrupted, capsys):
    before, went_on = (sys.unraisablehook, signal.getsignal(signal.SIGTERM)), []

    def run() -> None:
        with Ending(signal.SIGTERM, Terminated("terminated")):
            interrupted()
            went_on.append(True)
            time.sleep(60)

    with pytest.raises(Terminated):
        run()
    assert went_on and before == (sys.unraisablehook, signal.getsignal(signal.SIGTERM))
    assert capsys.readouterr().err == ""


def test_a_signal_in_the_block_takes_effect_at_its_end():
    done = []

    def put_off(number: int) -> None:
        with signals_put_off():
            signal.raise_signal(number)
            done.append(number)

    with exit_code_of_sigterm():
        ends = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            put_off(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == ends
        with pytest.raises(Terminated):
            put_off(signal.SIGTERM)
    assert done == [signal.SIGINT, signal.SIGTERM]


def test_a_price_is_found_before_a_signal_takes_effect():
    # torch asks python for what a fake tensor is from where an exception is the end of the process
    rates, through = Rates(make_model("llama").config), []

    def work(model: nn.Module, ids: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        model(ids).logits.sum().backward()
        through.append(ids.shape[1])

    with pytest.raises(SystemExit) as end, exit_code_of_sigterm():
        rates.measure(work)
    assert end.value.code == 143
    assert through == [8, 16, 24]
