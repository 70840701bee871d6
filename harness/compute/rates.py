"""What passes through an architecture cost, from its configuration alone: no weights, no data, no device."""

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from transformers import AutoModelForCausalLM, PretrainedConfig

from harness.compute.flops import count_flops
from harness.model.decoder import captured, differentiable_after, find_decoder
from harness.quiet import hiding_deprecations
from harness.signals import signals_put_off

_LENGTHS = (8, 16, 24)
Work = Callable[[nn.Module, Int[Tensor, "1 length"]], object]


@dataclass(frozen=True)
class Rate:
    """FLOPs of one kind of pass: so many per token, and so many per pair of a token and a position it attends to.

    Padding counts like any token. A causal mask is not deducted, as in the meter.
    """

    per_token: int
    per_pair: int

    def of(self, rows: int, length: int, *, past: int = 0) -> int:
        """A batch of ``rows`` x ``length`` tokens, on a cache of ``past`` positions."""
        return rows * length * (self.per_token + self.per_pair * (past + length))


class Rates:
    """Rates of one architecture, each found by counting short passes over a model that has shapes and no numbers.

    The model is made on the meta device; for a count its parameters say that they are on ``device``, because the
    choice between fused and plain attention, which differ by a product in the backward, depends on it.
    """

    def __init__(self, config: PretrainedConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        self.device = device
        head = self.model.get_output_embeddings()
        self.head = 2 * head.weight.numel()
        """FLOPs of the LM head's product for one position."""
        self._found: dict[Hashable, Rate] = {}

    def body(self, layers: int | None = None) -> Rate:
        """The forward pass without the LM head, through the first ``layers`` decoder layers (default: all)."""

        def work(model: nn.Module, ids: Tensor) -> None:
            with torch.no_grad():
                _hidden(model, ids, layers)

        return self._once(("body", layers), lambda: self.measure(work))

    def training(
        self,
        adapter: Any = None,
        *,
        checkpointing: bool = False,
        layers: int | None = None,
        attention: str | None = None,
    ) -> Rate:
        """Forward and backward without the LM head, of all weights or of a PEFT ``adapter`` configuration alone.

        With ``layers`` the pass ends behind so many decoder layers, and the gradient starts there. ``attention`` is
        what transformers calls an implementation; by default the model's own.
        """

        def work(model: nn.Module, ids: Tensor) -> None:
            _hidden(model, ids, layers).sum().backward()

        def measure() -> Rate:
            model: Any = copy.deepcopy(self.model)
            if attention is not None:
                model.set_attn_implementation(attention)
            if adapter is not None:
                from peft import get_peft_model

                with hiding_deprecations():
                    model = get_peft_model(model, copy.deepcopy(adapter))
            if checkpointing:
                model.activation_checkpointing_enable()
                if adapter is not None:
                    model.enable_input_require_grads()
            return self.measure(work, model.train())

        return self._once(("training", repr(adapter), checkpointing, layers, attention), measure)

    def gradient(self, layer: int) -> Rate:
        """Forward without the LM head, and backward from its end to the residual stream after ``layer`` alone: no
        gradient of any weight."""

        def work(model: nn.Module, ids: Tensor) -> None:
            with differentiable_after(find_decoder(model), layer) as leaves:
                hidden = _hidden(model, ids, None)
            torch.autograd.grad(hidden.sum(), leaves)

        return self._once(("gradient", layer), lambda: self.measure(work))

    def measure(self, work: Work, model: nn.Module | None = None) -> Rate:
        """The rate of ``work(model, ids)`` on one row of ``ids``; the model's tensors have no values in it.

        Raises ValueError where the FLOPs depend on values, or are not so many per token and per pair.
        """
        counts = []
        try:
            with signals_put_off(), _without_values(model or self.model, self.device) as weightless:
                for length in _LENGTHS:
                    with count_flops() as counter:
                        work(weightless, torch.zeros(1, length, dtype=torch.long, device=self.device))
                    counts.append(counter.get_total_flops())
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException) as problem:
            raise ValueError(f"the FLOPs of this pass depend on values: {problem}") from None
        (short, long, check), (a, b, c) = counts, _LENGTHS
        per_pair, rest = divmod(long * a - short * b, a * b * (b - a))
        per_token, rest_of_token = divmod(short - per_pair * a * a, a)
        rate = Rate(per_token, per_pair)
        if rest or rest_of_token or rate.of(1, c) != check:
            raise ValueError(f"{counts} FLOPs for {_LENGTHS} tokens are not so many per token and per pair")
        return rate

    def _once(self, key: Hashable, find: Callable[[], Rate]) -> Rate:
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]


@contextmanager
def _without_values(model: nn.Module, device: str) -> Iterator[nn.Module]:
    """A copy of ``model`` whose tensors claim to be on ``device`` and hold nothing, and the mode to run it in."""
    shadow = copy.deepcopy(model)
    with FakeTensorMode():
        made: dict[int, nn.Parameter] = {}  # by the original's id: tied weights stay tied
        for module in shadow.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    fake = torch.empty(p.shape, dtype=p.dtype, device=device)
                    made.setdefault(id(p), nn.Parameter(fake, requires_grad=p.requires_grad))
                    module._parameters[name] = made[id(p)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        yield shadow


def _hidden(model: nn.Module, ids: Int[Tensor, "1 length"], layers: int | None) -> Tensor:
    """The hidden states behind the first ``layers`` decoder layers, or the stack's own output where it is None."""
    decoder = find_decoder(model)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if layers is None:
        return decoder.stack(**inputs).last_hidden_state
    with captured(decoder, {layers - 1}, stop=True) as residual:
        decoder.stack(**inputs)
    return residual[layers - 1]
