"""Peak memory of this process, between two points in time."""

import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from harness.compute.bill import MemorySource

_SLACK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Peak:
    """``host``: resident bytes of the process. ``cuda``: bytes torch allocated, None without CUDA."""

    host: int
    cuda: int | None = None

    def __or__(self, other: "Peak") -> "Peak":
        """The larger of two peaks, host and CUDA each."""
        cuda = [peak.cuda for peak in (self, other) if peak.cuda is not None]
        return Peak(max(self.host, other.host), max(cuda, default=None))


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss


def reset_peak() -> MemorySource:
    """Forget the peak so far, and say what `read_peak` will give.

    "VmHWM": the peak since this reset, from the kernel's own mark. "process": the peak since the process began, where
    the mark cannot be reset (macOS, some containers). CUDA's peak is torch's own and can always be reset.
    """
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): set the peak resident size to the current one
    except OSError:
        return "process"
    # Some sandboxes take the write and ignore it.
    return "VmHWM" if _host_peak() <= resident_bytes() + _SLACK_BYTES else "process"


def read_peak() -> Peak:
    """The peak since the last `reset_peak`, or since the process began where that said so."""
    if not torch.cuda.is_initialized():
        return Peak(_host_peak())
    devices = range(torch.cuda.device_count())
    return Peak(_host_peak(), sum(torch.cuda.max_memory_allocated(device) for device in devices))


def _host_peak() -> int:
    # Not ru_maxrss where VmHWM is known: it cannot be reset, and begins with what the parent had.
    status = Path("/proc/self/status")
    mark = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    if mark is not None:
        return int(mark.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
