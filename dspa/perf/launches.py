"""What a decode step asks of a CUDA device: kernels launched, and how often the host waits."""

import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def launches_and_waits(work: Callable[[], object], steps: int) -> tuple[float, float]:
    """(kernel launches, host synchronisations) per step of ``work``, which runs twice; needs CUDA."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    launches = sum(event.count for event in seen.key_averages() if event.key in _LAUNCHES)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    waits = sum("synchroniz" in str(warning.message) for warning in told)
    return launches / steps, waits / steps
