"""A chat model on this machine as judge."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveInt
from transformers import AutoModelForCausalLM

from harness.data.refs import ModelRef
from harness.data.triples import Conversation
from harness.judging.judge import register_judge
from harness.judging.prompted import PromptedJudge, Received, Reply
from harness.judging.reward_model import AnswerFormat
from harness.model.aligned import AlignedModel
from harness.model.base import base_identity, check_device, check_weights


@register_judge("local")
class LocalJudge(PromptedJudge):
    """``model``, a causal LM by folder or public name, answers greedily in its chat format.

    A question that leaves no room for ``max_new_tokens`` in the context, and a reply that is cut off at that length,
    are failures. Replies are kept after each batch.
    """

    operational: ClassVar[frozenset[str]] = frozenset({"max_new_tokens", "batch_size", "device"})

    model: ModelRef = Field(description="the judge: a causal LM by folder, GGUF file or public name")
    max_new_tokens: PositiveInt = Field(1024, description="of a reply; one that is longer is a failure")
    batch_size: PositiveInt = Field(8, description="questions answered together")
    device: str = Field("cpu", description="torch device")

    @property
    def identity(self) -> dict[str, Any]:
        """The model by its content, wherever it lies."""
        ref = {**self.model.model_dump(include={"dtype", "chat"}), "content": self._content}
        return super().identity | {"model": ref}

    @property
    def label(self) -> str:
        """The model's name, as a file may be called, and what its verdicts depend on besides."""
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', self._name)}-{self.settings_hash}"

    @property
    def statement(self) -> str:
        return self._stated(f"{self._name} ({self._content[:8]}), run locally and greedily")

    def check(self) -> None:
        """Also refuses a device that is not there and a model that cannot be read or is no causal LM."""
        super().check()
        check_device(self.device)
        check_weights(self.model, AutoModelForCausalLM)
        form = AnswerFormat.of(self.model)
        if self.max_new_tokens >= form.max_length:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for a question in the context of "
                f"{form.max_length} tokens; give less"
            )

    def _ask(self, conversations: Sequence[Conversation], received: Received) -> None:
        lengths = [len(self._aligned.prompt_ids(conversation)) for conversation in conversations]
        order = sorted(range(len(conversations)), key=lambda index: -lengths[index])
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            settings = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
            completions = self._aligned.generate([conversations[index] for index in batch], **settings)
            for index, completion in zip(batch, completions, strict=True):
                received(index, self._reply(completion))

    def _reply(self, completion: Any) -> Reply:
        counts = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": len(completion.token_ids)}
        if completion.error is not None:
            return Reply(None, completion.error, **counts)
        if not completion.finished:
            error = f"the answer was cut off at {self.max_new_tokens} tokens"
            return Reply(None, error, raw=completion.text, **counts)
        return Reply(completion.text, None, **counts)

    @cached_property
    def _aligned(self) -> AlignedModel:
        return AlignedModel.from_base(self.model, device=self.device)

    @cached_property
    def _content(self) -> str:
        return base_identity(self.model)

    @property
    def _name(self) -> str:
        return self.model.id or Path(str(self.model.path)).name
