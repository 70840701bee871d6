"""What running a model takes: the network, its chat format and what steers it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from harness.model.chat import ChatFormat
from harness.model.intervention import Intervention
from harness.model.steering import Steering


@dataclass(frozen=True, eq=False)
class Runtime:
    """All that generation and scoring know of a model. ``max_length``: context length in tokens; ``intervention``:
    None for a model that is not steered."""

    model: PreTrainedModel
    chat: ChatFormat
    max_length: int
    intervention: Intervention | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def steering(self) -> "AbstractContextManager[Steering | None]":
        """Hooks for forwards of ``model``; a null context where there is no intervention."""
        if self.intervention is None:
            return nullcontext()
        chat = self.chat
        return Steering(self.model, self.intervention, special_ids=chat.special_ids, stop_ids=chat.stop_ids)
