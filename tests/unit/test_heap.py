"""Blocks of memory that are freed: with `map_blocks` they go back to the system though small ones lie between them."""

import os
import subprocess
import sys

import pytest
from torch import nn

from harness.heap import BLOCK, SMALL_MODEL_BLOCK, map_blocks, map_blocks_for

PROGRAM = """
import ctypes, sys
from harness.heap import map_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIZE = 2 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def block():
    found = libc.malloc(SIZE)
    ctypes.memset(found, 1, SIZE)
    return found


if sys.argv[1] == "mapped":
    map_blocks(SIZE)
libc.free(block())  # from here on glibc takes such blocks from its heap, unless it is told
before, blocks = resident(), []
for _ in range(100):
    blocks.append(block())
    libc.malloc(5000)
for one in blocks:
    libc.free(one)
print((resident() - before) // SIZE)
"""


PIECES = """
import ctypes, sys
import torch
from harness import heap

heap.Heap.GROWN = 32 << 20
model = torch.nn.Linear(4200, 4200)
if sys.argv[1] == "mapped":
    pieces = heap.Heap(model)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before, kept, blocks = heap._resident(), [], []
for _ in range(1000):
    blocks.append(libc.malloc(100_000))
    ctypes.memset(blocks[-1], 1, 100_000)
    kept.append(libc.malloc(5000))
for one in blocks:
    libc.free(one)
if sys.argv[1] == "mapped":
    pieces.between_steps()
print((heap._resident() - before) >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_pieces_of_the_heap_go_back_between_steps():
    assert kept(PIECES, "mapped") < 30
    assert kept(PIECES, "heap") > 80


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_what_lies_between_small_blocks_goes_back_only_if_it_is_mapped():
    assert kept(PROGRAM, "mapped") < 10
    assert kept(PROGRAM, "heap") > 90


def kept(program: str, how: str) -> int:
    """What it prints: how much is still resident of what was freed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", program, how]
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def test_what_the_user_says_of_his_memory_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1")
    monkeypatch.setattr("harness.heap.ctypes.CDLL", lambda _: pytest.fail("it is changed"))
    map_blocks(1)


@pytest.mark.parametrize(("width", "block"), [(8, SMALL_MODEL_BLOCK), (5000, BLOCK)])
def test_a_large_models_smaller_blocks_are_mapped_too(width, block, monkeypatch):
    asked = []
    monkeypatch.setattr("harness.heap.map_blocks", asked.append)
    map_blocks_for(nn.Linear(width, width))
    assert asked == [block]
