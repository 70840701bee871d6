"""dpo: Direct Preference Optimization through TRL's DPOTrainer, with LoRA or full fine-tuning."""

import copy
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.compute import Meter, signature_of
from harness.method import MethodConfig, register_method
from harness.model import AlignedModel
from harness.preferences import Triple

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

LossType = Literal[
    "sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


@register_method("dpo")
class DPO(MethodConfig):
    """arXiv 2305.18290. Defaults of the learning (1 epoch, lr 5e-6, beta 0.1, AdamW) are the DSPA paper's; the batch
    size, the schedule and everything about LoRA are ours. The reference model is the base; its forward passes are
    part of the bill."""

    tuning: Literal["lora", "full"] = "full"
    loss_type: LossType = "sigmoid"
    beta: Annotated[float, Field(gt=0)] = 0.1
    epochs: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    batch_size: Annotated[int, Field(ge=1, description="triples per forward")] = 16
    accumulation: Annotated[int, Field(ge=1, description="forwards per optimiser step")] = 1
    lora_rank: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    lora_targets: str | list[str] = "all-linear"
    gradient_checkpointing: bool = False
    bf16: bool = False
    report_to: Literal["none", "wandb", "trackio"] = "none"

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train a copy of the base; ``seed`` decides the order of the triples and the LoRA initialisation."""
        from transformers import set_seed

        rows = _rows(base, triples)
        set_seed(seed)
        with meter.stage("train"), tempfile.TemporaryDirectory() as scratch:
            trainer = _trainer_class()(
                model=copy.deepcopy(base.model),
                # With LoRA the reference is the policy with its adapter off: one copy of the weights is enough.
                ref_model=base.model if self.tuning == "full" else None,
                args=self._arguments(scratch, seed, on_cpu=base.device.type == "cpu"),
                train_dataset=rows,
                processing_class=copy.deepcopy(base.tokenizer),  # TRL gives it a pad token
                peft_config=self._lora() if self.tuning == "lora" else None,
                meter=meter,
            )
            meter.train_params = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            try:
                trainer.train()
            finally:
                _unpatch(base.model)
            meter.optimiser_steps += trainer.state.global_step
            model = trainer.model
        _unpatch(model.get_base_model() if self.tuning == "lora" else model)
        return base.derive(
            method="dpo",
            params=self.model_dump(mode="json"),
            model=model.eval(),
            delta="adapter" if self.tuning == "lora" else "weights",
        )

    def _lora(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            target_modules=self.lora_targets,
            task_type="CAUSAL_LM",
        )

    def _arguments(self, scratch: str, seed: int, *, on_cpu: bool) -> Any:
        from trl import DPOConfig

        return DPOConfig(
            output_dir=scratch,
            loss_type=[self.loss_type],
            beta=self.beta,
            num_train_epochs=self.epochs,
            learning_rate=self.learning_rate,
            lr_scheduler_type=self.lr_schedule,
            warmup_steps=self.warmup_ratio,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulation,
            gradient_checkpointing=self.gradient_checkpointing,
            bf16=self.bf16,
            max_length=None,  # lengths were checked against the context: nothing is cut
            train_sampling_strategy="group_by_length",  # similar lengths together, so that little is padding
            remove_unused_columns=False,  # keeps `length` for the sampler
            seed=seed,
            data_seed=seed,
            use_cpu=on_cpu,
            save_strategy="no",
            logging_strategy="no" if self.report_to == "none" else "steps",
            report_to=self.report_to,
            disable_tqdm=True,
            dataloader_pin_memory=not on_cpu,
        )


def _rows(base: AlignedModel, triples: Sequence[Triple]) -> "Dataset":
    """Token ids from our own chat format, the same as at inference; answers end with the end-of-turn token.

    Raises ValueError for a triple that does not fit the model's context.
    """
    from datasets import Dataset

    rows = []
    for triple in triples:
        prompt, *answers = base.triple_ids(triple)
        chosen, rejected = ([*answer, base.chat.end_id] for answer in answers)
        length = len(prompt) + max(len(chosen), len(rejected))
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "length": length})
    return Dataset.from_list(rows)


def _trainer_class() -> type:
    from trl import DPOTrainer

    class MeteredDPOTrainer(DPOTrainer):
        """TRL's trainer on rows that are token ids already, with every training step billed."""

        def __init__(self, *args: Any, meter: Meter, **kwargs: Any) -> None:
            self._meter = meter
            super().__init__(*args, **kwargs)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            tokens = int(inputs["attention_mask"].sum())
            labelled = int(inputs["completion_mask"].sum())
            with self._meter.step(
                # The fused LM head works on labelled positions only, so their number decides the FLOPs too.
                signature_of(inputs, labelled if model.device.type == "cuda" else None),
                tokens=tokens,
                reference_tokens=tokens,
                kind="train",
            ):
                return super().training_step(model, inputs, num_items_in_batch)

    return MeteredDPOTrainer


def _unpatch(model: "nn.Module") -> None:
    """Take off the fused LM head that TRL puts on an instance, so that it is its class's own forward again."""
    for name in ("forward", "_original_forward"):
        vars(model).pop(name, None)
