"""Peak memory between two points: by the kernel's mark, and where that cannot be reset."""

import mmap
from pathlib import Path

import pytest
import torch

from harness.compute import Meter
from harness.compute.bill import Bill
from harness.compute.memory import Peak, read_peak, reset_peak, resident_bytes

BLOCK = 64 * 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel keeps no mark to reset")


def use_block() -> None:
    # Straight from the system: the allocator may hold memory that earlier tests left resident.
    with mmap.mmap(-1, BLOCK) as block:
        for page in range(0, BLOCK, mmap.PAGESIZE):
            block[page] = 1


@linux
def test_a_peak_holds_what_was_used_in_between_and_a_reset_forgets_it() -> None:
    before = resident_bytes()
    assert reset_peak() == "VmHWM"
    use_block()
    used = read_peak().host
    reset_peak()
    assert used >= before + BLOCK * 0.9
    assert read_peak().host <= used - BLOCK * 0.9


@pytest.fixture(params=["refused", "ignored"])
def no_reset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that keeps its mark: macOS and some containers refuse to reset it, some sandboxes ignore the write."""

    def write(path: Path, _text: str) -> None:
        assert path == Path("/proc/self/clear_refs")
        if request.param == "refused":
            raise PermissionError

    monkeypatch.setattr(Path, "write_text", write)


@pytest.mark.usefixtures("no_reset")
def test_where_nothing_can_be_reset_the_peak_is_that_of_the_process_and_the_bill_says_so() -> None:
    before = resident_bytes()
    use_block()
    bill = billed(Meter(torch.nn.Linear(1, 1)))
    assert bill.peak_source == "process"
    assert bill.stages[0].peak_bytes == bill.peak_bytes >= before + BLOCK * 0.9


def billed(meter: Meter) -> Bill:
    with meter.stage("only"):
        pass
    return meter.bill(method="any", n_triples=1)


def test_the_larger_of_two_peaks_ignores_a_missing_cuda_figure() -> None:
    assert Peak(1, 5) | Peak(2) == Peak(2, 5)
    assert Peak(3) | Peak(2) == Peak(3)
    assert Peak(1, 5) | Peak(1, 6) == Peak(1, 6)


@linux
def test_each_stage_has_its_own_peak_and_the_bill_covers_what_is_between() -> None:
    meter = Meter(torch.nn.Linear(1, 1))
    with meter.running():
        with meter.stage("small"):
            pass
        with meter.stage("large"):
            use_block()
        with meter.stage("small again"):
            pass
    bill = meter.bill(method="any", n_triples=1)
    small, large, again = (stage.peak_bytes for stage in bill.stages)
    assert bill.peak_source == "VmHWM"
    assert large >= max(small, again) + BLOCK * 0.9
    assert bill.peak_bytes >= bill.start_bytes + BLOCK * 0.9

    between = Meter(torch.nn.Linear(1, 1))
    with between.running():
        use_block()
        with between.stage("small"):
            pass
    bill = between.bill(method="any", n_triples=1)
    assert bill.peak_bytes >= bill.stages[0].peak_bytes + BLOCK * 0.9
