"""Peak memory between two points, by the kernel's mark and by sampling."""

import mmap
import time
from pathlib import Path

import pytest
import torch

import harness.compute.memory
from harness.compute import Meter
from harness.compute.memory import Peak, PeakMemory, resident_bytes

BLOCK = 64 * 2**20


def use_block(seconds: float = 0.0) -> None:
    # Straight from the system: the allocator may hold memory that earlier tests left resident.
    with mmap.mmap(-1, BLOCK) as block:
        for page in range(0, BLOCK, mmap.PAGESIZE):
            block[page] = 1
        time.sleep(seconds)


@pytest.fixture(params=["kernel", "sampling"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PeakMemory:
    if request.param == "sampling":
        monkeypatch.setattr(harness.compute.memory, "_CLEAR", Path("/nowhere/clear_refs"))
    return PeakMemory()


def test_peak_holds_what_was_used_in_between_and_reset_forgets_it(memory: PeakMemory) -> None:
    before = resident_bytes()
    memory.start()
    use_block(0.2)
    used = memory.read().host
    memory.reset()
    after = memory.read().host
    memory.stop()
    assert used >= before + BLOCK * 0.9
    assert after <= used - BLOCK * 0.9


def test_the_source_is_named(memory: PeakMemory, request: pytest.FixtureRequest) -> None:
    memory.start()
    memory.stop()
    if request.node.callspec.params["memory"] == "sampling":
        assert memory.source == "sampled"


def test_a_reset_that_the_kernel_ignores_falls_back_to_sampling(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(harness.compute.memory, "_CLEAR", tmp_path / "clear_refs")
    status = tmp_path / "status"
    status.write_text("VmHWM:\t 900000 kB\nVmRSS:\t 100000 kB\n")
    monkeypatch.setattr(harness.compute.memory, "_STATUS", status)
    memory = PeakMemory()
    memory.start()
    memory.stop()
    assert memory.source == "sampled"


def test_the_larger_of_two_peaks_ignores_a_missing_cuda_figure() -> None:
    assert Peak(1, 5) | Peak(2) == Peak(2, 5)
    assert Peak(3) | Peak(2) == Peak(3)
    assert Peak(1, 5) | Peak(1, 6) == Peak(1, 6)


def test_each_stage_has_its_own_peak_and_the_bill_covers_what_is_between() -> None:
    meter = Meter(torch.nn.Linear(1, 1))
    with meter.running():
        with meter.stage("small"):
            pass
        with meter.stage("large"):
            use_block(0.1)
        with meter.stage("small again"):
            pass
    bill = meter.bill(method="any", n_triples=1)
    small, large, again = (stage.peak_bytes for stage in bill.stages)
    assert large >= max(small, again) + BLOCK * 0.9
    assert bill.peak_bytes >= bill.start_bytes + BLOCK * 0.9

    between = Meter(torch.nn.Linear(1, 1))
    with between.running():
        use_block(0.1)
        with between.stage("small"):
            pass
    bill = between.bill(method="any", n_triples=1)
    assert bill.peak_bytes >= bill.stages[0].peak_bytes + BLOCK * 0.9
