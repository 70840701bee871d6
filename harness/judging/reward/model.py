"""A reward model: one number for the last answer of a conversation, in the chat format of inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from harness.data.refs import ModelRef
from harness.data.triples import Conversation
from harness.model.batching import pad_rows
from harness.model.chat import ChatFormat


@dataclass(frozen=True)
class AnswerFormat:
    """Token ids of a conversation that ends with an answer, and how many there may be."""

    chat: ChatFormat
    max_length: int

    @classmethod
    def of(cls, ref: ModelRef) -> "AnswerFormat":
        """That of a model, without loading its weights. Raises ValueError when ``ref`` names no model or tokenizer."""
        config = _read(AutoConfig, ref).get_text_config()
        return cls(ChatFormat.of(_read(AutoTokenizer, ref), ref.chat), int(config.max_position_embeddings))

    def ids(self, conversation: Conversation) -> list[int]:
        """Prompt, last answer and the token that ends it. Raises ValueError for more than ``max_length``."""
        prompt, answer = conversation[:-1], conversation[-1]["content"]
        ids = [*self.chat.prompt_ids(prompt), *self.chat.response_ids(answer), self.chat.end_id]
        if len(ids) > self.max_length:
            raise ValueError(
                f"the conversation {prompt[-1]['content'][:40]!r}... has {len(ids)} tokens, more than the reward "
                f"model's context of {self.max_length}"
            )
        return ids


def _read(kind: Any, ref: ModelRef) -> Any:
    """What ``kind`` (AutoConfig or AutoTokenizer) makes of ``ref``; ValueError when it names no model."""
    try:
        return kind.from_pretrained(ref.source, revision=ref.revision)
    except OSError as problem:  # unknown ids, a missing network and missing files alike
        raise ValueError(f"cannot read model {ref.path or ref.id!r}: {problem}") from None


def check_scores_answers(ref: ModelRef) -> None:
    """Raise ValueError unless ``ref`` is a sequence classifier with one output, from its configuration alone."""
    config = _read(AutoConfig, ref)
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds) or config.num_labels != 1:
        raise ValueError(
            f"{ref.path or ref.id!r} is no reward model: that is an architecture ...ForSequenceClassification with one "
            f"label, and this is {', '.join(kinds) or 'none'} with {config.num_labels}; give another, or train a `base`"
        )


def check_can_score(ref: ModelRef) -> None:
    """Raise ValueError for a base whose architecture has no sequence classifier in transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = _read(AutoConfig, ref)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence classifier for models of type {config.model_type!r}; give another `base`"
        )


class RewardModel:
    """A sequence classifier with one output, ready to score."""

    def __init__(self, model: PreTrainedModel, form: AnswerFormat) -> None:
        self.model = model.eval()
        self.form = form

    @classmethod
    def load(cls, ref: ModelRef, *, device: str = "cpu") -> "RewardModel":
        """Load by folder or public name."""
        model = AutoModelForSequenceClassification.from_pretrained(
            ref.source, revision=ref.revision, dtype=getattr(torch, ref.dtype)
        )
        model.to(device)
        form = AnswerFormat.of(ref)
        if model.config.get_text_config().pad_token_id is None:
            model.config.get_text_config().pad_token_id = form.chat.pad_id  # where its forward looks for the last token
        return cls(model, form)

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
        return [found[tuple(row)] for row in rows]
