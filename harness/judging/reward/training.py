"""Trains a reward model on preference triples with TRL's RewardTrainer, on our own token ids."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.data.refs import ModelRef
from harness.data.triples import Message, Triple
from harness.quiet import hiding_deprecations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.judging.reward.model import AnswerFormat


class Training(BaseModel):
    """The settings of one training; everything that decides the weights but the triples and the base's content."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tuning: Literal["full", "lora"] = "full"
    epochs: Annotated[float, Field(gt=0, le=100, description="passes over the triples")] = 4.0
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] = 1e-4
    batch_size: Annotated[int, Field(ge=1, description="triples per optimiser step")] = 8
    lora_rank: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    held_out: Annotated[float, Field(gt=0, lt=1, description="share of the prompts kept to measure accuracy on")] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of the held-out draw, the head's start and the order")] = 0


def answer_rows(form: "AnswerFormat", triples: Sequence[Triple]) -> list[tuple[list[int], list[int]]]:
    """Token ids of the chosen and the rejected conversation of each triple.

    Raises ValueError for one that does not fit the model's context: nothing is cut.
    """

    def ids(triple: Triple, answer: str) -> list[int]:
        return form.ids((*triple.prompt, Message(role="assistant", content=answer)))

    return [(ids(triple, triple.chosen), ids(triple, triple.rejected)) for triple in triples]


def train_reward_model(
    base: ModelRef, form: "AnswerFormat", triples: Sequence[Triple], settings: Training, folder: Path, *, device: str
) -> None:
    """Train ``base`` with a new scoring head on all ``triples`` and write it, a model of its own, into ``folder``.

    The loss is TRL's, -log sigmoid(score of chosen - score of rejected). LoRA weights are merged. On a CPU with the
    same number of threads the same input gives the same weights.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import RewardTrainer

    rows = [
        {"chosen_ids": chosen, "rejected_ids": rejected, "length": max(len(chosen), len(rejected))}
        for chosen, rejected in answer_rows(form, triples)
    ]
    set_seed(settings.seed)  # the head and the adapter start at random
    model = _with_head(base)
    tokenizer = copy.deepcopy(form.chat.tokenizer)  # TRL gives it a pad token
    with tempfile.TemporaryDirectory() as scratch, hiding_deprecations():
        trainer: Any = RewardTrainer(
            model=model if settings.tuning == "full" else _with_adapter(model, settings),
            args=_arguments(settings, scratch, on_cpu=device == "cpu"),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trained = trainer.model
    if settings.tuning == "lora":
        trained = trained.merge_and_unload()
    trained.to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors lets nobody but the owner read what it writes


def _with_head(base: ModelRef) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    with suppress_seqcls_warning():  # that the head is new and the LM head goes unused is what is wanted
        return AutoModelForSequenceClassification.from_pretrained(
            base.source, revision=base.revision, dtype=getattr(torch, base.dtype), num_labels=1
        )


def _with_adapter(model: "PreTrainedModel", settings: Training) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        modules_to_save=["score"],
        task_type="SEQ_CLS",
    )
    return get_peft_model(model, config)


def _arguments(settings: Training, scratch: str, *, on_cpu: bool) -> Any:
    from trl import RewardConfig

    return RewardConfig(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        warmup_steps=0.1,
        per_device_train_batch_size=settings.batch_size,
        max_length=None,  # lengths were checked against the context: nothing is left out
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,  # keeps `length` for the sampler
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=on_cpu,
        bf16=False,  # the base's dtype decides
        save_strategy="no",
        logging_strategy="no",
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
