"""Memory that is freed goes back to the system; glibc would keep it, in pieces that the next tensor does not fit into.

torch asks for aligned blocks, and of a freed one glibc (2.36) reuses little. While a batch of prompts passes
SmolLM2-135M, each layer's tensors take new memory: 3.2 GB where 0.3 are needed at a time; a DPO fit peaks at 6 GB
instead of 3. Blocks above a threshold are therefore mapped, and unmapped when freed, which costs page faults: with a
model of a few million parameters, which wastes little anyhow, half of the time of a training. So the threshold goes by
the size of the model.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path

from torch import nn

SMALL_MODEL = 64 << 20
"""Bytes of parameters below which memory is not worth its page faults."""
SMALL_MODEL_BLOCK = 32 << 20
BLOCK = 1 << 20
"""Bytes from which on blocks are mapped, with small models and with all others."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_KEPT_AT_THE_TOP = 32 << 20


def map_blocks_for(model: nn.Module) -> None:
    """`map_blocks` from the size on that suits ``model``."""
    map_blocks(SMALL_MODEL_BLOCK if _bytes(model) < SMALL_MODEL else BLOCK)


def map_blocks(size: int) -> None:
    """Have blocks of ``size`` bytes and more mapped in this process from now on.

    Does nothing where the C library is not glibc, and where the user's MALLOC_MMAP_THRESHOLD_ says something else.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ and (library := _glibc()) is not None:
        library.mallopt(_MMAP_THRESHOLD, size)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_AT_THE_TOP)


class Heap:
    """What smaller blocks leave in pieces, given back whenever the process has grown by ``GROWN`` bytes.

    To be asked between the steps of a training, when little is in use: torch's smaller tensors and Python's objects lie
    between each other, so that a step takes new memory although the one before gave all of its own back.
    """

    GROWN = 1 << 30

    def __init__(self, model: nn.Module) -> None:
        self._library = None if _bytes(model) < SMALL_MODEL else _glibc()
        self._before = _resident() if self._library is not None else 0

    def between_steps(self) -> None:
        """Give back what can be, if it is time."""
        if self._library is not None and _resident() > self._before + self.GROWN:
            self._library.malloc_trim(0)
            self._before = _resident()


def give_back_memory() -> None:
    """What a fit left behind goes back to the system: trainer, model and optimiser, which hold each other."""
    gc.collect()
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None


def _resident() -> int:
    """Bytes of memory of this process; Linux alone has the file."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
