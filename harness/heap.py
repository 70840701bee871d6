"""Memory that is freed is used again: glibc's heap, set up for tensors.

torch asks for aligned blocks. glibc (2.36) cuts each out of a longer one and keeps the cuttings in its caches of small
pieces, where nothing joins them again: a freed block is just too short for the next tensor of its size. So a heap grows
to several times what is in use; and where blocks are mapped one by one instead, page faults take an eighth of a
training's time and a quarter of a fit of DSPA (docs/speed.md).
Without those caches a freed block is whole at once; in huge pages, and not given back at every step, it costs few
faults.
"""

import ctypes
import gc
import os
import sys

_VARIABLE = "GLIBC_TUNABLES"
_SETTINGS = {"tcache_count": 0, "mxfast": 0, "hugetlb": 1, "mmap_threshold": 256 << 20, "trim_threshold": 128 << 20}
"""glibc's names, all of glibc.malloc."""


def heap_variables() -> dict[str, str]:
    """What the environment of a process must hold before it starts; nothing where the C library is not glibc, or where
    the user says how memory is to be had."""
    ours = ":".join(f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())
    given = os.environ.get(_VARIABLE, ours) != ours or any(name.startswith("MALLOC_") for name in os.environ)
    return {} if given or _glibc() is None else {_VARIABLE: ours}


def restart_with_heap() -> None:
    """Begin this program anew, in this process, with `heap_variables` where it lacks them: glibc reads them once."""
    lacking = heap_variables().items() - os.environ.items()
    if lacking and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **dict(lacking)})


def give_back_memory() -> None:
    """What a fit left behind goes back to the system: trainer, model and optimiser, which hold each other."""
    gc.collect()
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def settle() -> None:
    """`give_back_memory`, and the collector leaves out what is there now, which stays: modules, the base model.

    To pass over these half a million objects takes 0.3 s each time, and a fit has several (accelerate's and ours)."""
    give_back_memory()
    gc.freeze()


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None
