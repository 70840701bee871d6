"""What metering costs: training steps with a meter against the same steps without, interleaved."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle, islice
from typing import Any

import torch

from harness.compute.flops import signature_of
from harness.compute.meter import Meter
from harness.speed.compare import Comparison, Goal, Work, compare

GOAL = Goal(0.98)
"""A metered run is at least so many times as fast as the unmetered one."""
_SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
_VOCABULARY, _ROWS, _LENGTHS = 1000, 8, (48, 64)


def measure_overhead(*, rounds: int, steps: int, seed: int) -> Comparison:
    """Seconds of ``steps`` training steps of a small Llama with random weights, in each of ``rounds``.

    Of the candidates ``unmetered`` (the reference) and ``metered``, whose shapes are counted already: counting a new
    shape and the profiled steps of a kind come once, so they are not in it. Over a long run they vanish, over a
    short one they do not (`Bill.metering_seconds`).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=_VOCABULARY, num_attention_heads=4, **_SIZES)).train()
    batches = []
    for length in _LENGTHS:
        ids = torch.randint(0, _VOCABULARY, (_ROWS, length))
        batches.append({"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)})
    meter = Meter(model)

    def step(batch: dict[str, torch.Tensor]) -> AbstractContextManager[None]:
        return meter.step(signature_of(batch), tokens=int(batch["attention_mask"].sum()), kind="train")

    def run(metered: bool, steps: int) -> None:
        for batch in islice(cycle(batches), steps):
            with step(batch) if metered else nullcontext():
                model(**batch).loss.backward()
            model.zero_grad(set_to_none=True)

    @contextmanager
    def opened(metered: bool) -> Iterator[Work]:
        with meter.stage("train") if metered else nullcontext():
            yield lambda: run(metered, steps)

    with meter.stage("train"):
        run(True, 2 * len(batches))  # each shape is counted, the steps to be profiled are
    candidates = {"unmetered": lambda: opened(False), "metered": lambda: opened(True)}
    return compare(candidates, reference="unmetered", rounds=rounds, warmup=2, seed=seed)


def meter_command(threads: int | None, *, rounds: int, steps: int, seed: int) -> None:
    """The body of `perf meter`: measure and print; with at most 2 % of wall time for the meter the goal is met."""
    if threads is not None:
        torch.set_num_threads(threads)
    comparison = measure_overhead(rounds=rounds, steps=steps, seed=seed)
    speed = comparison.speed("metered")
    print(f"{rounds} rounds of {steps} training steps, {torch.get_num_threads()} threads; median [95 % interval]")
    print(f"control, unmetered against itself: {comparison.speed(comparison.control)}")
    print(f"speed of the metered run:          {speed}  (goal: at least {GOAL.at_least}: {GOAL.verdict(speed)})")
