"""When a signal takes effect."""

import signal
from typing import Any

import pytest
from torch import nn

from harness.compute.rates import Rates
from harness.signals import Terminated, exit_code_of_sigterm, signals_put_off
from tests.conftest import make_model


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
