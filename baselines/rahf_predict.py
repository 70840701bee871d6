"""What the stages of RAHF are going to cost."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.compute.rates import Rates
from harness.predicted import trainer_batches

if TYPE_CHECKING:
    from peft import LoraConfig

    from baselines.rahf_shared import RAHF


def contrastive_flops(method: "RAHF", rows: Sequence[dict[str, Any]], rates: Rates, adapter: Any) -> int:
    """Stage 1 of rahf_scit: each answer behind both instructions; the LM head works on answers alone."""
    training = rates.training(adapter, checkpointing=method.gradient_checkpointing)
    head = rates.head * (3 if adapter is None else 2)
    total, options = 0, {"accumulation": method.accumulation, "epochs": method.epochs}
    for batch in trainer_batches([row["length"] for row in rows], batch_size=method.batch_size, **options):
        prompt = max(max(len(rows[r]["plus"]), len(rows[r]["minus"])) for r in batch)
        answer = max(len(rows[r]["answer"]) for r in batch)
        total += training.of(2 * len(batch), prompt + answer) + head * 2 * len(batch) * (answer + 1)
    return total


def activity_flops(
    method: "RAHF",
    rows: Sequence[dict[str, Any]],
    rates: Rates,
    *,
    layers: Sequence[int],
    adapter: "LoraConfig",
    steps: int,
) -> int:
    """Stage 2: the frozen model's activities, those of its contrast, and the LoRA's with their gradient.

    Nothing goes further than the last of ``layers``. The coins thrown here are others than the trainer's.
    """
    forward = rates.body(max(layers))
    training = rates.training(adapter, checkpointing=method.gradient_checkpointing, layers=max(layers))
    coin, total = random.Random(0), 0
    updates_an_epoch = -(-len(rows) // (method.fit_batch_size * method.accumulation))
    for batch in trainer_batches(
        [row["length"] for row in rows],
        batch_size=method.fit_batch_size,
        accumulation=method.accumulation,
        epochs=steps / updates_an_epoch,
    ):
        answer = max(len(rows[r]["answers"][coin.randrange(2)]) for r in batch)
        own = max(len(rows[r]["prompt"]) for r in batch) + answer
        total += forward.of(len(batch), own) + training.of(len(batch), own)
        if "contrast" in rows[batch[0]]:
            prompt = max(len(prompt) for r in batch for prompt in rows[r]["contrast"])
            total += forward.of(2 * len(batch), prompt + answer)
        else:
            total += forward.of(len(batch), own)
    return total
