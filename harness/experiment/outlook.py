"""What a run may take beside the bills of its fits: seconds, disk, verdicts and money. Estimates, and named as such."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from harness.benchmark import BenchmarkConfig, PromptBenchmark
from harness.compute.rates import Rates
from harness.experiment.forecast import Forecaster
from harness.experiment.room import Room
from harness.experiment.suite import Suite
from harness.judging import Judge
from harness.run_folder.plan import PlannedCell

BYTES_A_TOKEN = 8
"""Of an answer on disk, with its token ids."""
BYTES_A_RECORD = 2000
"""Of a record on disk: prompt, verdict, keys."""
LEAST_RECORD = 100
"""Bytes that no record is below: its keys alone."""
PROCESS_BYTES = 500 * 2**20
"""Resident memory of a process that has imported torch, transformers and this package, about."""
TRAINED_COPIES = 4
"""Of the weights, that full fine-tuning has beside the base: the policy, its gradient and the two means of Adam."""
INSTRUCTIONS = 400
"""Tokens that a judge's instructions have, about."""
MEASURED_ROWS = 512
MEASURED_SECONDS = 0.2


@dataclass(frozen=True)
class Decode:
    """``times`` batches in which ``rows`` answers of ``tokens`` new tokens are written behind ``context`` tokens."""

    times: float
    rows: float
    tokens: int
    context: float


@dataclass(frozen=True)
class Asked:
    """What one benchmark asks in one cell, at most: answers, their new tokens, FLOPs of all of it, and the verdicts of
    a judge with the tokens that it reads for them. ``read_flops`` are those of prompts and of given answers alone, and
    ``decodes`` how the new tokens are written. None where the benchmark does not say what it asks."""

    answers: int
    tokens: int
    flops: int
    verdicts: int
    judged_tokens: int
    read_flops: int = 0
    decodes: tuple[Decode, ...] = ()


@dataclass(frozen=True)
class _Load:
    """One thing that is asked, in tokens: ``given`` answers scored behind a prompt, or ``new`` ones in each round."""

    prompt: int
    given: tuple[int, ...]
    new: int
    rounds: int
    count: float


def asked(benchmark: BenchmarkConfig, room: Room, rates: Rates) -> Asked | None:
    """Every answer counts as long as it may be, each round with all that was said before; a context is encoded once for
    all that is scored behind it."""
    loads = _loads(benchmark, room)
    if loads is None:
        return None
    body, reading, writing, judged = rates.body(), 0.0, 0.0, 0.0
    written: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for one in loads:
        for number in range(one.rounds if one.new else 0):
            past = one.prompt + number * one.new
            read = body.of(1, past) + rates.head
            reading += one.count * read
            writing += one.count * (body.of(1, past + one.new) + one.new * rates.head - read)
            judged += one.count * (past + one.new + INSTRUCTIONS)
            written.setdefault((number, one.new), []).append((one.count, past))
        if one.given:
            behind = sum(body.of(1, length, past=one.prompt) + length * rates.head for length in one.given)
            reading += one.count * (body.of(1, one.prompt) + behind)
    batch, decodes, answers, tokens = getattr(benchmark, "batch_size", 1), [], 0.0, 0.0
    for (_, new), rows in written.items():
        count = sum(times for times, _ in rows)
        size = min(batch, count)
        decodes.append(Decode(count / size, size, new, sum(times * past for times, past in rows) / count))
        answers, tokens = answers + count, tokens + count * new
    verdicts = benchmark.verdicts if isinstance(benchmark, PromptBenchmark) else 0
    return Asked(
        answers=round(answers),
        tokens=round(tokens),
        flops=round(reading + writing),
        verdicts=verdicts,
        judged_tokens=round(verdicts * judged / answers) if answers else 0,
        read_flops=round(reading),
        decodes=tuple(decodes),
    )


def _loads(benchmark: BenchmarkConfig, room: Room) -> list[_Load] | None:
    """In tokens of the base's tokenizer; what is longer than its context is cut to it."""
    chat, longest = room.chat, room.max_length
    if isinstance(benchmark, PromptBenchmark):
        return [
            _Load(
                room.prompt_tokens(item.conversation),
                tuple(len(chat.response_ids(answer)) + 1 for answer in item.answers),
                item.generated,
                item.rounds,
                1,
            )
            for item in benchmark.items()
        ]
    requests = benchmark.requests()
    if requests is None:
        return None

    def tokens(text: str) -> int:
        return min(longest, len(chat.tokenizer.encode(text, add_special_tokens=False)))

    return [
        _Load(tokens(one.context), tuple(map(tokens, one.continuations)), one.generated, 1, one.count)
        for one in requests
    ]


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


@dataclass(frozen=True)
class Needs:
    """Bytes that what is left of a run takes: of disk, at least (that much is certain) and at most; of memory, about,
    in all workers together, without activations and logits. ``_free`` is what there is now."""

    folder: Path
    least_disk: int
    most_disk: int
    disk_free: int
    memory: int
    memory_free: int
    workers: int
    device: str

    @property
    def text(self) -> str:
        """One line that says all of it."""
        enough = "" if self.memory <= self.memory_free else ": too little; take fewer execution.workers"
        who = f"{self.workers} worker{'s' * (self.workers > 1)} on {self.device}"
        return (
            f"needs {_size_text(self.least_disk)} to {_size_text(self.most_disk)} of disk "
            f"({_size_text(self.disk_free)} free) and at least about {_size_text(self.memory)} of memory for "
            f"{who} ({_size_text(self.memory_free)} free{enough})"
        )

    def check(self) -> None:
        """Raise ValueError when the disk certainly is too small."""
        if self.least_disk > self.disk_free:
            raise ValueError(
                f"the run needs at least {_size_text(self.least_disk)} of disk in {str(self.folder)!r}, and "
                f"{_size_text(self.disk_free)} are free there; free some, give --out on another disk, or run less"
            )


def needs(suite: Suite, cells: Sequence[PlannedCell], folder: Path) -> Needs:
    """Of the ``cells`` of ``suite`` that are to do in the run folder ``folder``, which need not exist."""
    file = suite.file
    model = Forecaster(file.base, device=file.execution.device).rates.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    fits = [cell for cell in cells if cell.uses_triples and not (folder / "cells" / cell.name / "artifact").is_dir()]
    whole = [cell for cell in fits if not suite.tuned(cell) and suite.method_of(cell, folder).keeps_weights]
    known = {name: one for name, one in suite.benchmarks.items() if isinstance(one, PromptBenchmark)}
    items = {name: benchmark.items() for name, benchmark in known.items()}
    answered = {
        name: Asked(
            sum(item.rounds for item in found if item.generated),
            sum(item.rounds * item.generated for item in found),
            *(0, 0, 0),
        )
        for name, found in items.items()
    }
    begun = [cell for cell in cells if (folder / "cells" / cell.name).exists()]
    records = LEAST_RECORD * (len(cells) - len(begun)) * sum(map(len, items.values()))
    most, free = disk(folder, fits=len(fits), weights=weights, asked_by=answered, cells=len(cells))
    workers = min(file.execution.workers, max(1, len(cells)))
    on_gpu = file.execution.device.startswith("cuda") and torch.cuda.is_available()  # a cluster's need not be here
    copies = 1 + (TRAINED_COPIES if whole else 0)
    least = len(whole) * weights + records
    return Needs(
        folder=folder,
        least_disk=least,
        most_disk=max(most, least),
        disk_free=free,
        memory=workers * (copies * weights + (0 if on_gpu else PROCESS_BYTES)),
        memory_free=torch.cuda.mem_get_info(file.execution.device)[0] if on_gpu else psutil.virtual_memory().available,
        workers=workers,
        device=file.execution.device,
    )


def _size_text(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 10**9 else f"{size / 1e6:,.1f} MB"
