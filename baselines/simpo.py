"""simpo: Simple Preference Optimization through TRL's CPOTrainer (trl.experimental), with LoRA or full fine-tuning."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from baselines.metered import Metered, experimental
from baselines.rows import labelled_rows
from baselines.training import TrainedMethod
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.method import register_method
from harness.model.aligned import AlignedModel


@register_method("simpo")
class SimPO(TrainedMethod):
    """arXiv 2405.14734: no reference model, rewards are mean log-likelihoods times beta, apart by a margin.

    The margin is ``gamma_ratio`` (the paper's gamma/beta) times beta; TRL's ``simpo_gamma`` is this product. beta 2,
    ratio 0.5, lr 6e-7, 1 epoch, cosine and warm-up 0.1 are the paper's for its Llama base model; the batch (128 there)
    and everything about LoRA are ours.
    """

    beta: Annotated[float, Field(gt=0, description="scale of the rewards")] = 2.0
    gamma_ratio: Annotated[float, Field(ge=0, description="target margin as a share of beta")] = 0.5
    learning_rate: Annotated[float, Field(gt=0)] = 6e-7
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the triples and the LoRA initialisation."""
        with experimental():
            from trl.experimental.cpo import CPOConfig, CPOTrainer

        class Trainer(Metered, CPOTrainer):
            passes = ("chosen_attention_mask", "rejected_attention_mask")
            labelled = ()  # no fused LM head here
            batches = (("chosen_input_ids", "rejected_input_ids"),)

        loss = {"loss_type": "simpo", "beta": self.beta, "simpo_gamma": self.beta * self.gamma_ratio, "cpo_alpha": 0.0}
        longest = base.base.max_length  # None would mean 512 to this trainer
        options = loss | {"disable_dropout": False, "max_length": longest}
        return self.train(base, Trainer, CPOConfig, labelled_rows(base, triples), options, meter=meter, seed=seed)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both answers with their prompt, trained on."""
        lengths = [row["length"] for row in labelled_rows(base, triples)]
        return {"train": self.training_flops(lengths, self.trained_pass(rates, lengths, texts=2))}
