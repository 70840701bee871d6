"""Blocks of memory that are freed and asked for again: the heap stays as large as what is in use."""

import os
import subprocess
import sys

import pytest

from harness.heap import heap_variables

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")

# Tensors of five sizes come and go as in a pass over a model, with small objects between them.
PROGRAM = """
import random, resource
import torch

draw, alive, kept, used = random.Random(0), [], [], 0
before = resource.getrusage(resource.RUSAGE_SELF)
for step in range(4000):
    numbers = draw.choice([30_000, 70_000, 150_000, 230_000, 900_000])
    alive.append(torch.zeros(numbers))
    kept.append(bytes(draw.randrange(600, 1000)))
    if len(alive) > 40:
        alive.pop(draw.randrange(len(alive)))
    used = max(used, sum(one.nbytes for one in alive))
after = resource.getrusage(resource.RUSAGE_SELF)
print((after.ru_maxrss - before.ru_maxrss) * 1024 / used, after.ru_minflt - before.ru_minflt)
"""


@pytest.fixture
def bare(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)


def run(program, *arguments, **more):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=True).stdout


def test_freed_blocks_are_whole_again(bare):
    grown, faults = map(float, run(PROGRAM, **heap_variables()).split())
    _, faults_without = map(float, run(PROGRAM).split())
    assert grown < 2, "times what was in use"
    assert faults < faults_without / 4


def test_the_program_begins_anew_with_its_heap_and_its_arguments(bare):
    program = (
        "import os, sys; import harness.cli.app as app; from harness.cli import main\n"
        "app.main = lambda: print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])\n"
        "print(os.getpid(), flush=True); main()"
    )
    first, second, told = run(program, "a b", "--c").strip().split("\n")
    process, variable, arguments = told.split(maxsplit=2)
    assert first == second == process, "one process, which began twice"
    assert variable == heap_variables()["GLIBC_TUNABLES"]
    assert arguments == "['a b', '--c']"
    assert len(run(program, GLIBC_TUNABLES="glibc.malloc.perturb=1").strip().split("\n")) == 2, "it did not"


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_what_the_user_says_of_memory_stands(name, bare, monkeypatch):
    assert heap_variables()
    monkeypatch.setenv(name, "1")
    assert not heap_variables()
