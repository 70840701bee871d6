"""What metering costs: training steps with a meter against the same steps without, interleaved."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from harness.compute.flops import signature_of
from harness.compute.meter import Meter
from harness.speed.compare import Comparison, Goal, Work, compare

GOAL = Goal(0.98)
"""A metered run is at least so many times as fast as the unmetered one."""
_WIDTH, _LAYERS, _ROWS, _LENGTHS = 256, 4, 8, (48, 64)


@dataclass(frozen=True)
class OverheadOptions:
    """``steps`` training steps of a small Llama with random weights in each of ``rounds``."""

    rounds: int = 20
    steps: int = 8
    seed: int = 0


def measure_overhead(options: OverheadOptions) -> Comparison:
    """Seconds of the candidates ``unmetered`` (the reference) and ``metered``, whose shapes are counted already.

    Counting a new shape and the one profiled step of a stage come once, so they are not in it: over a long run they
    vanish, over a short one they do not (`Bill.metering_seconds`).
    """
    torch.manual_seed(options.seed)
    model, batches = _model(), [_batch(length) for length in _LENGTHS]
    meter = Meter(model)

    def step(batch: dict[str, torch.Tensor]) -> AbstractContextManager[None]:
        return meter.step(signature_of(batch), tokens=int(batch["attention_mask"].sum()), kind="train")

    def run(metered: bool, steps: int) -> None:
        for index in range(steps):
            batch = batches[index % len(batches)]
            with step(batch) if metered else nullcontext():
                model(**batch).loss.backward()
            model.zero_grad(set_to_none=True)

    @contextmanager
    def opened(metered: bool) -> Iterator[Work]:
        with meter.stage("train") if metered else nullcontext():
            yield lambda: run(metered, options.steps)

    with meter.stage("train"):
        run(True, 2 * len(batches))  # each shape is counted, one step is profiled
    candidates: dict[str, Any] = {"unmetered": lambda: opened(False), "metered": lambda: opened(True)}
    return compare(candidates, reference="unmetered", rounds=options.rounds, warmup=2, seed=options.seed)


def _model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": _WIDTH, "intermediate_size": 3 * _WIDTH, "num_hidden_layers": _LAYERS}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, num_attention_heads=4, **sizes)).train()


def _batch(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 1000, (_ROWS, length))
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def meter_command(threads: int | None, *, rounds: int, steps: int, seed: int) -> None:
    """The body of `perf meter`: measure and print; with at most 2 % of wall time for the meter the goal is met."""
    if threads is not None:
        torch.set_num_threads(threads)
    comparison = measure_overhead(OverheadOptions(rounds, steps, seed))
    speed = comparison.speed("metered")
    print(f"{rounds} rounds of {steps} training steps, {torch.get_num_threads()} threads; median [95 % interval]")
    print(f"control, unmetered against itself: {comparison.speed(comparison.control)}")
    print(f"speed of the metered run:          {speed}  (goal: at least {GOAL.at_least}: {GOAL.verdict(speed)})")
