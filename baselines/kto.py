"""kto: Kahneman-Tversky Optimization through TRL's KTOTrainer, with LoRA or full fine-tuning."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from baselines.metered import Metered
from baselines.rows import Row, token_triples
from baselines.training import TrainedMethod, reference_pass
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.triples import Triple
from harness.method import register_method
from harness.model.aligned import AlignedModel


@register_method("kto")
class KTO(TrainedMethod):
    """arXiv 2402.01306. A triple is two rows, its chosen answer desirable and its rejected one undesirable.

    The reference point (a KL estimate) comes from the answers of other triples to the same prompt. beta 0.1, both
    weights 1 and 1 epoch are the paper's; the learning rate is that of our DPO, so that the two differ in the loss
    alone, and the batch, the schedule and everything about LoRA are ours too. The base is the reference; its passes
    and those for the reference point are part of the bill.
    """

    beta: Annotated[float, Field(gt=0, description="how strongly the reference holds the model; smaller: less")] = 0.1
    desirable_weight: Annotated[float, Field(gt=0, description="of the loss of chosen answers")] = 1.0
    undesirable_weight: Annotated[float, Field(gt=0, description="of the loss of rejected answers")] = 1.0

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the answers and the LoRA initialisation.

        Raises ValueError for a single triple: it has no other answer to estimate the reference point from.
        """
        from trl import KTOConfig, KTOTrainer

        class Trainer(Metered, KTOTrainer):
            reference_passes = ("attention_mask", "KL_attention_mask", "KL_attention_mask")
            labelled = ("completion_mask", "KL_completion_mask")
            batches = (("input_ids",), ("KL_input_ids",))

            def _compute_kl_logps(self, *args: Any) -> Any:
                # Of which TRL takes the mean over the rows, and of that the mean over the processes.
                found: Any = super()._compute_kl_logps(*args)
                return found * self.share

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                # TRL insists on the order given, since its own preparation pairs neighbours; our rows are paired.
                self.args.train_sampling_strategy = "group_by_length"

        rows = unpaired_rows(base, triples)
        options = self.model_dump(include={"beta", "desirable_weight", "undesirable_weight"}) | {
            "per_device_train_batch_size": 2 * self.batch_size,  # ours counts triples, TRL's rows
            "train_sampling_strategy": "sequential",
            "disable_dropout": False,
        }
        return self.train(base, Trainer, KTOConfig, rows, options, meter=meter, seed=seed, ref_model=base.model)

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Each answer trained on and passed through the reference, each unrelated one passed through both models.

        What a LoRA adapter adds to the pass of the unrelated answers is left out.
        """
        rows = unpaired_rows(base, triples)
        answers, others = ([len(row[name]) for row in rows] for name in ("completion_ids", "KL_completion_ids"))
        prompts = [len(row["prompt_ids"]) for row in rows]
        own, unrelated = ([p + a for p, a in zip(prompts, tokens, strict=True)] for tokens in (answers, others))
        reference = reference_pass(rates, own, answers), *[reference_pass(rates, unrelated, others)] * 2
        passes = self.trained_pass(rates, own, answers), *reference
        lengths = [row["length"] for row in rows]
        return {"train": self.training_flops(lengths, *passes, batch_size=2 * self.batch_size)}


def unpaired_rows(base: AlignedModel, triples: Sequence[Triple]) -> list[Row]:
    """Two rows a triple, as TRL's KTOTrainer takes them, each with an answer of the same kind to another prompt.

    That answer is the next triple's in order, or of the first one after it that fits the context with this prompt.
    """
    tokens, longest = token_triples(base, triples), base.base.max_length
    rows = []
    for index, (prompt, *answers) in enumerate(tokens):
        others = tokens[index + 1 :] + tokens[:index]
        for kind, answer in enumerate(answers, 1):
            unrelated = next((other[kind] for other in others if len(prompt) + len(other[kind]) <= longest), None)
            if unrelated is None:
                raise ValueError(
                    f"kto: triple {triples[index].key[:12]} has no other triple's answer that fits the context of "
                    f"{longest} tokens with its prompt; give at least two triples, with shorter answers"
                )
            row = {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": unrelated, "label": kind == 1}
            rows.append(row | {"length": len(prompt) + max(len(answer), len(unrelated))})
    return rows
