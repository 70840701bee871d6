"""What a run may take beside the bills of its fits: seconds, disk, verdicts and money. Estimates, and named as such."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.benchmark import BenchmarkConfig, PromptBenchmark
from harness.compute.rates import Rates
from harness.experiment.room import Room
from harness.judging import Judge

BYTES_A_TOKEN = 8
"""Of an answer on disk, with its token ids."""
BYTES_A_RECORD = 2000
"""Of a record on disk: prompt, verdict, keys."""
INSTRUCTIONS = 400
"""Tokens that a judge's instructions have, about."""
MEASURED_ROWS = 512
MEASURED_SECONDS = 0.2


@dataclass(frozen=True)
class Asked:
    """What one benchmark asks in one cell, at most: answers, their new tokens, FLOPs of reading and answering, and the
    verdicts of a judge with the tokens that it reads for them. None where the benchmark does not say what it asks."""

    answers: int
    tokens: int
    flops: int
    verdicts: int
    judged_tokens: int


def asked(benchmark: BenchmarkConfig, room: Room, rates: Rates) -> Asked | None:
    """Every answer counts as long as it may be, each round with all that was said before."""
    if not isinstance(benchmark, PromptBenchmark):
        return None
    body, answers, tokens, flops, read = rates.body(), 0, 0, 0, 0
    for item in benchmark.items():
        prompt, new = room.prompt_tokens(item.conversation), item.generated
        for number in range(item.rounds if new else 0):
            flops += body.of(1, prompt + (number + 1) * new) + new * rates.head
            read += prompt + (number + 1) * new + INSTRUCTIONS
        for answer in item.answers:
            length = prompt + len(room.chat.response_ids(answer)) + 1
            flops += body.of(1, length) + (length - prompt) * rates.head
        answers += item.rounds if new else 0
        tokens += new * item.rounds
    verdicts = benchmark.verdicts
    return Asked(answers, tokens, flops, verdicts, round(verdicts * read / answers) if answers else 0)


def most_money(judge: Judge, verdicts: int, judged_tokens: int) -> float | None:
    """What the verdicts of a judge with prices may cost; None for one without."""
    prices = [getattr(judge, name, None) for name in ("price_in", "price_out", "max_tokens")]
    if None in prices:
        return None
    price_in, price_out, longest = prices
    return (judged_tokens * price_in + verdicts * longest * price_out) / 10**6  # type: ignore[operator]


def product_rate(width: int, *, dtype: torch.dtype, device: str) -> float:
    """FLOPs a second of this device in a matrix product of the base's own width, with the threads that torch has."""
    rows = torch.ones(MEASURED_ROWS, width, dtype=dtype, device=device)
    weight = torch.ones(width, 4 * width, dtype=dtype, device=device)
    flops, start, turn = 2 * rows.numel() * 4 * width, 0.0, 0
    while True:
        product = rows @ weight
        if device != "cpu":
            _ = product[0, 0].item()  # waits for the device
        if turn == 2:  # the first ones set things up
            start = time.perf_counter()
        elif turn > 2 and (elapsed := time.perf_counter() - start) > MEASURED_SECONDS:
            return (turn - 2) * flops / elapsed
        turn += 1


def disk(room_for: Path, *, fits: int, weights: int, asked_by: Mapping[str, Asked], cells: int) -> tuple[int, int]:
    """(bytes that the cells take at most, if every fit keeps all weights; bytes that are free where the run goes)."""
    answers = sum(one.answers * BYTES_A_RECORD + one.tokens * BYTES_A_TOKEN for one in asked_by.values())
    there = next(folder for folder in (room_for.absolute(), *room_for.absolute().parents) if folder.exists())
    return fits * weights + cells * answers, shutil.disk_usage(there).free
