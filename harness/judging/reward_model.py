"""A reward model: one number for the last answer of a conversation, in the chat format of inference.

Trained on preference triples with TRL's RewardTrainer, on our own token ids.
"""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from harness.data.refs import ModelRef
from harness.data.triples import Conversation, Message, Triple
from harness.model.base import check_weights
from harness.model.batching import pad_rows
from harness.model.chat import ChatFormat
from harness.model.dequantised import source_of
from harness.model.pretrained import read_config, read_model, read_tokenizer
from harness.pulse import beat
from harness.quiet import hiding_deprecations


@dataclass(frozen=True)
class AnswerFormat:
    """Token ids of a conversation that ends with an answer, and how many there may be."""

    chat: ChatFormat
    max_length: int

    @classmethod
    def of(cls, ref: ModelRef) -> "AnswerFormat":
        """That of a model, without loading its weights. Raises ValueError when ``ref`` names no model or tokenizer."""
        config = _config(ref).get_text_config()
        tokenizer = read_tokenizer(source_of(ref), revision=ref.revision)
        return cls(ChatFormat.of(tokenizer, ref.chat), int(config.max_position_embeddings))

    def ids(self, conversation: Conversation) -> list[int]:
        """Prompt, last answer and the token that ends it. Raises ValueError for more than ``max_length``."""
        prompt, ids = conversation[:-1], self._all_ids(conversation)
        if len(ids) > self.max_length:
            raise ValueError(
                f"the conversation {prompt[-1]['content'][:40]!r}... has {len(ids)} tokens, more than the reward "
                f"model's context of {self.max_length}"
            )
        return ids

    def longest(self, triple: Triple) -> int:
        """Tokens of the longer one of a triple's two conversations."""
        return max(len(self._all_ids(pair)) for pair in _conversations(triple))

    def _all_ids(self, conversation: Conversation) -> list[int]:
        prompt, answer = conversation[:-1], conversation[-1]["content"]
        return [*self.chat.prompt_ids(prompt), *self.chat.response_ids(answer), self.chat.end_id]

    def rows(self, triples: Sequence[Triple]) -> list[tuple[list[int], list[int]]]:
        """Ids of the chosen and the rejected conversation of each triple; ValueError as `ids`: nothing is cut."""
        return [(self.ids(chosen), self.ids(rejected)) for chosen, rejected in map(_conversations, triples)]


def _conversations(triple: Triple) -> tuple[Conversation, Conversation]:
    """With the chosen and with the rejected answer."""
    chosen, rejected = (
        (*triple.prompt, Message(role="assistant", content=answer)) for answer in (triple.chosen, triple.rejected)
    )
    return chosen, rejected


def check_scores_answers(ref: ModelRef) -> None:
    """Raise ValueError unless ``ref`` is a sequence classifier with one output, from its configuration alone."""
    config = _config(ref)
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds) or config.num_labels != 1:
        raise ValueError(
            f"{ref.path or ref.id!r} is no reward model: that is an architecture ...ForSequenceClassification with one "
            f"label, and this is {', '.join(kinds) or 'none'} with {config.num_labels}; give another, or train a `base`"
        )


def check_can_score(ref: ModelRef) -> None:
    """Raise ValueError for a base whose architecture has no sequence classifier in transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = _config(ref)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence classifier for models of type {config.model_type!r}; give another `base`"
        )


def _config(ref: ModelRef) -> Any:
    return read_config(source_of(ref), revision=ref.revision)


def check_classifier(ref: ModelRef, *, new_head: bool) -> None:
    """Raise ValueError, before any work, for weights that are not all those of a classifier (see `check_weights`);
    those of its head may be missing where it is new."""
    check_weights(ref, AutoModelForSequenceClassification, new_head=new_head)


def _classifier(ref: ModelRef, *, new_head: bool = False, **settings: Any) -> Any:
    settings["dtype"] = getattr(torch, ref.dtype)
    source, kind = source_of(ref), AutoModelForSequenceClassification
    return read_model(kind, source, new_head=new_head, revision=ref.revision, **settings)


class RewardModel:
    """A sequence classifier with one output, ready to score."""

    def __init__(self, ref: ModelRef, *, device: str = "cpu") -> None:
        self.model, self.form = _classifier(ref).to(device).eval(), AnswerFormat.of(ref)
        config = self.model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = self.form.chat.pad_id  # where its forward looks for the last token

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]], *, batch_size: int) -> list[float]:
        """A score for each row of ids, in order; rows of similar length are passed together, equal ones once."""
        different = sorted({tuple(row) for row in rows}, key=lambda row: (-len(row), row))
        found: dict[tuple[int, ...], float] = {}
        pad_id = self.model.config.get_text_config().pad_token_id
        for start in range(0, len(different), batch_size):
            batch = different[start : start + batch_size]
            ids, mask = pad_rows(batch, pad_id, side="right", device=self.model.device)
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float()
            found.update(zip(batch, logits.tolist(), strict=True))
            beat()
        return [found[tuple(row)] for row in rows]


class Training(BaseModel):
    """The settings of one training; everything that decides the weights but the triples and the base's content."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    tuning: Literal["full", "lora"] = Field("full", description="what is trained: all weights, or an adapter")
    epochs: Annotated[float, Field(gt=0, le=100, description="passes over the triples")] = 4.0
    learning_rate: Annotated[float, Field(gt=0, le=0.1, description="of AdamW")] = 1e-4
    batch_size: Annotated[int, Field(ge=1, description="triples per optimiser step")] = 8
    lora_rank: Annotated[int, Field(ge=1, description="rank of the adapter's matrices")] = 8
    lora_alpha: Annotated[float, Field(gt=0, description="the adapter counts lora_alpha / lora_rank times")] = 16
    held_out: Annotated[float, Field(gt=0, lt=1, description="share of the prompts kept to measure accuracy on")] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of the held-out draw, the head's start and the order")] = 0


def train_reward_model(
    base: ModelRef, form: AnswerFormat, triples: Sequence[Triple], settings: Training, folder: Path, *, device: str
) -> None:
    """Train ``base`` with a new scoring head on all ``triples`` and write it, a model of its own, into ``folder``.

    The loss is TRL's, -log sigmoid(score of chosen - score of rejected). LoRA weights are merged. On a CPU with the
    same number of threads the same input gives the same weights.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import RewardTrainer

    rows = [{"chosen_ids": a, "rejected_ids": b, "length": max(len(a), len(b))} for a, b in form.rows(triples)]
    set_seed(settings.seed)  # the head and the adapter start at random
    model = _classifier(base, num_labels=1, new_head=True)
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


def _with_adapter(model: PreTrainedModel, settings: Training) -> Any:
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
