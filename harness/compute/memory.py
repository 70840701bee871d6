"""Peak memory of the process between two points in time."""

import re
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from harness.compute.bill import MemorySource

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): set the peak resident set size to the current one
_SLACK_BYTES = 16 * 2**20
_INTERVAL_SECONDS = 0.02


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


class PeakMemory:
    """Peak memory since the last `reset`, between `start` and `stop`.

    On Linux the kernel's own high-water mark (VmHWM) is reset and read: exact and free. Where it cannot be
    reset (other systems, some containers) a thread samples resident memory every 20 ms; ``source`` says which
    it was. CUDA's peak is torch's own statistic; no CUDA context is made for it.
    """

    def __init__(self) -> None:
        self.source: MemorySource = "VmHWM"
        self._sampler: _Sampler | None = None

    def start(self) -> None:
        if not _reset_high_water_mark():
            self.source = "sampled"
            self._sampler = _Sampler()
        self.reset()

    def reset(self) -> None:
        """Forget the peak so far."""
        if self._sampler is not None:
            self._sampler.reset()
        else:
            _reset_high_water_mark()
        if torch.cuda.is_initialized():
            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> Peak:
        """The peak since the last reset."""
        host = self._sampler.read() if self._sampler is not None else _status_bytes("VmHWM")
        if not torch.cuda.is_initialized():
            return Peak(host)
        devices = range(torch.cuda.device_count())
        return Peak(host, sum(torch.cuda.max_memory_allocated(device) for device in devices))

    def stop(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None


class _Sampler:
    def __init__(self) -> None:
        self._peak = resident_bytes()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL_SECONDS):
            self.read()

    def reset(self) -> None:
        with self._lock:
            self._peak = resident_bytes()

    def read(self) -> int:
        with self._lock:
            self._peak = max(self._peak, resident_bytes())
            return self._peak

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def _status_bytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {key}")
    return int(match.group(1)) * 1024


def _reset_high_water_mark() -> bool:
    """Whether the kernel did reset it: some sandboxes ignore the write, others keep no mark at all."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
        return _status_bytes("VmHWM") <= _status_bytes("VmRSS") + _SLACK_BYTES
    except OSError:
        return False
