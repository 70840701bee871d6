"""dpo: Direct Preference Optimization through TRL's DPOTrainer, with LoRA or full fine-tuning."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from baselines.training import Metered, TrainedMethod, preference_rows
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.method import register_method
from harness.model import AlignedModel
from harness.predicted import fused_head_flops, lora_config, trainer_batches
from harness.preferences import Triple

LossType = Literal[
    "sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


@register_method("dpo")
class DPO(TrainedMethod):
    """arXiv 2305.18290. Defaults of the learning (1 epoch, lr 5e-6, beta 0.1, AdamW) are the DSPA paper's; the batch
    size, the schedule and everything about LoRA are ours. The reference model is the base; its forward passes are
    part of the bill."""

    loss_type: LossType = "sigmoid"
    beta: Annotated[float, Field(gt=0)] = 0.1

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the triples and the LoRA initialisation."""
        from trl import DPOConfig, DPOTrainer

        class Trainer(Metered, DPOTrainer):
            reference_passes = ("attention_mask",)

        return self.train(
            base,
            Trainer,
            DPOConfig,
            preference_rows(base, triples),
            meter=meter,
            seed=seed,
            reference=True,
            options={"loss_type": [self.loss_type], "beta": self.beta, "disable_dropout": False},
        )

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both answers with their prompt, trained on and passed through the reference."""
        lengths = [int(row["length"]) for row in preference_rows(base, triples)]  # type: ignore[arg-type]
        training = rates.training(lora_config(self), checkpointing=self.gradient_checkpointing)
        head = fused_head_flops(rates, full=self.tuning == "full") + rates.head
        total, options = 0, {"accumulation": self.accumulation, "epochs": self.epochs}
        for rows in trainer_batches(lengths, batch_size=self.batch_size, **options):
            size, length = 2 * len(rows), max(lengths[row] for row in rows)
            total += training.of(size, length) + rates.body().of(size, length) + head * size * (length - 1)
        return {"train": total}
