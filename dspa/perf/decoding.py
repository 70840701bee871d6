"""One way of decoding, held open at the end of its prompts so that rounds of several ways can be interleaved."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dspa.perf.naive_decoding import LayerHook
from harness.intervention import find_decoder
from harness.model import AlignedModel
from harness.padding import pad_rows, positions_of


class Decoding:
    """Prompts passed once; each round then decodes ``steps`` given tokens one by one and takes them back.

    The tokens are given instead of chosen, so that every candidate sees the same ones. Each Decoding hooks a twin of
    the model that shares its weights, so that several can be open at a time.
    """

    def __init__(
        self,
        aligned: AlignedModel,
        prompts: Sequence[Sequence[int]],
        tokens: Int[Tensor, "batch all_steps"],
        *,
        steps: int,
        hook: tuple[int, LayerHook] | None = None,
    ) -> None:
        self._model = _twin(aligned.model)
        self._steps = steps
        self._blocks = cycle(tokens.to(aligned.device).split(steps, dim=1))
        if hook is not None:
            layer, function = hook
            find_decoder(self._model).layers[layer].register_forward_hook(function)
        self._session = aligned.derive(model=self._model).steering()
        self._steering = self._session.__enter__()
        ids, mask = pad_rows(prompts, aligned.chat.pad_id, side="left", device=aligned.device)
        self._mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)
        self._positions = positions_of(self._mask)
        self._length = ids.shape[1]
        self._cache = DynamicCache(config=self._model.config)
        self._forward(ids, 0, self._length)

    def tally(self) -> dict[str, Any]:
        """What was counted so far; empty where nothing is steered."""
        return (None if self._steering is None else self._steering.counts()) or {}

    def close(self) -> None:
        """Take the hooks away."""
        self._session.__exit__(None, None, None)

    @contextmanager
    def opened(self) -> Iterator[Callable[[], list[Float[Tensor, "batch vocabulary"]]]]:
        """A candidate of `harness.perf.compare`; its work gives the logits of the decoded steps."""
        block = next(self._blocks)

        def work() -> list[Tensor]:
            start = self._length
            return [self._forward(block[:, i : i + 1], start + i, start + i + 1) for i in range(self._steps)]

        yield work
        self.rewind()

    def rewind(self) -> None:
        """Take the decoded steps back."""
        self._cache.crop(-self._steps)

    @torch.no_grad()
    def _forward(self, ids: Tensor, first: int, last: int) -> Float[Tensor, "batch vocabulary"]:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask[:, :last],
            position_ids=self._positions[:, first:last],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules again around the same weights: hooks on one are none on the other."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
