"""orpo: Odds Ratio Preference Optimization through TRL's ORPOTrainer (trl.experimental), with LoRA or full."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from baselines.metered import Metered, experimental
from baselines.rows import IGNORED, labelled_rows
from baselines.training import TrainedMethod
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.method import register_method
from harness.model.aligned import AlignedModel


@register_method("orpo")
class ORPO(TrainedMethod):
    """arXiv 2403.07691: cross-entropy of the chosen answer plus beta (the paper's lambda) times an odds-ratio term.

    beta 0.1 and lr 8e-6 are the paper's; 1 epoch (10 there), the schedule, the batch and everything about LoRA are
    ours. The cross-entropy is over the answer alone, the paper's P(y|x); TRL's own is over the prompt as well.
    """

    beta: Annotated[float, Field(gt=0, description="weight of the odds-ratio term (the paper's lambda)")] = 0.1
    learning_rate: Annotated[float, Field(gt=0)] = 8e-6

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the triples and the LoRA initialisation."""
        with experimental():
            from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        class Trainer(Metered, ORPOTrainer):
            passes = ("chosen_attention_mask", "rejected_attention_mask")
            labelled = ()  # no fused LM head here
            batches = (("chosen_input_ids", "rejected_input_ids"),)

            def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
                means, *rest = super().concatenated_forward(model, batch)
                others: list[Any] = list(rest)
                lengths = (batch["chosen_labels"] != IGNORED).sum(-1)
                # In the place of TRL's cross-entropy, which is over the prompt too.
                others[3] = self.mean_over(-(means * lengths).sum() / lengths.sum(), lengths.sum())
                return means, *others

        longest = base.base.max_length  # None would mean 512 to this trainer
        options = {"beta": self.beta, "disable_dropout": False, "max_length": longest}
        return self.train(base, Trainer, ORPOConfig, labelled_rows(base, triples), options, meter=meter, seed=seed)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Both answers with their prompt, trained on."""
        lengths = [row["length"] for row in labelled_rows(base, triples)]
        return {"train": self.training_flops(lengths, self.trained_pass(rates, lengths, texts=2))}
