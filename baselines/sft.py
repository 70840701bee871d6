"""sft: supervised fine-tuning on the chosen answers through TRL's SFTTrainer; also stage 0, the shared base."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from baselines.metered import Metered
from baselines.rows import IGNORED, answer_rows
from baselines.training import TrainedMethod
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.method import register_method
from harness.model.aligned import AlignedModel


@register_method("sft")
class SFT(TrainedMethod):
    """Token cross-entropy of the chosen answers (and their end of turn), the mean over all answer tokens of a batch.

    The rejected answers are not used. The hyper-parameters are ours: 1 epoch, lr 2e-5 and a cosine schedule, the usual
    ones of full fine-tuning. With ``tuning=full`` the artifact's weights folder is a base model of its own.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the answers and the LoRA initialisation."""
        return train_on_answers(self, base, answer_rows(base, triples), meter=meter, seed=seed)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """The chosen answers with their prompt, trained on."""
        return {"train": supervised_flops(self, answer_rows(base, triples), rates)}


def train_on_answers(
    method: TrainedMethod, base: AlignedModel, rows: Sequence[Mapping[str, Any]], **options: Any
) -> AlignedModel:
    """`TrainedMethod.train` on `answer_rows` with TRL's SFTTrainer; ``options`` are its (meter, seed, ...)."""
    from trl import SFTConfig, SFTTrainer

    class Trainer(Metered, SFTTrainer):
        labelled = ("labels",)

    return method.train(base, Trainer, SFTConfig, rows, **options)


def supervised_flops(method: TrainedMethod, rows: Sequence[Mapping[str, Any]], rates: Rates) -> int:
    """FLOPs of `train_on_answers`: one text a row."""
    lengths = [row["length"] for row in rows]
    scored = [sum(label != IGNORED for label in row["labels"]) for row in rows]
    return method.training_flops(lengths, method.trained_pass(rates, lengths, scored))
