"""dpo: Direct Preference Optimization through TRL's DPOTrainer, with LoRA or full fine-tuning."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from baselines.metered import Metered
from baselines.rows import answer_lengths, preference_rows
from baselines.training import TrainedMethod, reference_pass
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.method import register_method
from harness.model.aligned import AlignedModel

LossType = Literal[
    "sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
_OF_BATCHES = ("aot", "aot_unpaired", "sft")


@register_method("dpo")
class DPO(TrainedMethod):
    """arXiv 2305.18290. Defaults of the learning (1 epoch, lr 5e-6, beta 0.1, AdamW) are the DSPA paper's; the batch
    size, the schedule and everything about LoRA are ours. The reference model is the base; its forward passes are
    part of the bill."""

    loss_type: LossType = Field("sigmoid", description="TRL's name of the loss")
    beta: Annotated[float, Field(gt=0, description="how strongly the reference holds the model; smaller: less")] = 0.1

    def check_processes(self, processes: int, *, sharded: bool = False) -> None:
        """Some losses compare the rows of a whole batch with each other, or average over its tokens."""
        super().check_processes(processes, sharded=sharded)
        if self.loss_type in _OF_BATCHES:
            raise ValueError(
                f"dpo: loss_type {self.loss_type!r} is one of a whole batch, which no process has; set "
                f"execution.per_fit.processes to 1, or another loss than {', '.join(_OF_BATCHES)}"
            )

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the triples and the LoRA initialisation."""
        from trl import DPOConfig, DPOTrainer

        class Trainer(Metered, DPOTrainer):
            reference_passes = ("attention_mask",)

        rows = preference_rows(base, triples)
        options = {"loss_type": [self.loss_type], "beta": self.beta, "disable_dropout": False}
        return self.train(base, Trainer, DPOConfig, rows, options, meter=meter, seed=seed, ref_model=base.model)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both answers with their prompt, trained on and passed through the reference."""
        rows = preference_rows(base, triples)
        lengths, scored = [row["length"] for row in rows], answer_lengths(rows)
        passes = self.trained_pass(rates, lengths, scored, texts=2), reference_pass(rates, lengths, scored, texts=2)
        return {"train": self.training_flops(lengths, *passes)}
