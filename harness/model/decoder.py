"""Where a model's residual stream is found, and the one way to see it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Decoder:
    """The module that runs the decoder layers, and the layers; layer l puts out the residual stream after block l."""

    stack: nn.Module
    layers: nn.ModuleList

    @property
    def n_layers(self) -> int:
        return len(self.layers)


def find_decoder(model: nn.Module) -> Decoder:
    """The decoder of a causal LM, also under PEFT: the largest ModuleList with ``num_hidden_layers`` entries.

    Found by shape and not by name, so any architecture whose layers sit in one ModuleList works.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    found = [
        Decoder(parent, child)
        for parent in model.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if not found:
        raise ValueError(f"{type(model).__name__}: found no ModuleList of {config.num_hidden_layers} decoder layers")
    return max(found, key=lambda d: sum(p.numel() for p in d.layers.parameters()))


def input_device(model: nn.Module) -> torch.device:
    """Where a causal LM's token ids belong: where its embeddings are computed, wherever their weights are kept.

    Of a model that is spread over devices the layers have others, to which accelerate's hooks move what they are given.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    hook = getattr(embeddings, "_hf_hook", None)
    places = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", (hook,))]
    place = next((one for one in places if one is not None), None)
    if place is None:
        return next(embeddings.parameters()).device
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def residual_of(output: Any) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream in a decoder layer's output, which is a tensor or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def with_residual(output: Any, residual: Tensor) -> Any:
    """The same output with another residual stream."""
    return (residual, *output[1:]) if isinstance(output, tuple) else residual


class _Stop(Exception):
    """Ends a forward pass when the deepest residual stream asked for is there."""


@contextmanager
def captured(
    decoder: Decoder, layers: Collection[int], *, stop: bool = False, last_columns: int | None = None
) -> Iterator[dict[int, Float[Tensor, "batch pos d_model"]]]:
    """Layer -> residual stream after it, of the latest forward inside; gradients flow through it as usual.

    ``last_columns`` keeps that of so many last positions alone. With ``stop`` a forward ends after the deepest of
    ``layers`` and ends the ``with`` block too: what comes later in the model never runs, nor does what is written below
    the forward.
    """
    residual: dict[int, Tensor] = {}
    last = max(layers)

    def keep(layer: int):
        def hook(_module: nn.Module, _args: tuple, output: Any) -> None:
            stream = residual_of(output)
            # Cut before the next layer runs: when it is decides the order, and so the last bits, of summed gradients.
            residual[layer] = stream if last_columns is None else stream[:, -last_columns:]

        return hook

    def end(*_: Any) -> None:
        raise _Stop

    handles = [decoder.layers[layer].register_forward_hook(keep(layer)) for layer in set(layers)]
    if stop and last + 1 < decoder.n_layers:
        # Not within the last block needed: under gradient checkpointing that is to be seen to its end.
        handles.append(decoder.layers[last + 1].register_forward_pre_hook(end))
    elif stop:
        handles.append(decoder.layers[last].register_forward_hook(end))
    try:
        yield residual
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def differentiable_after(decoder: Decoder, layer: int) -> Iterator[list[Float[Tensor, "batch pos d_model"]]]:
    """The residual stream after ``layer``, of each forward inside, as a leaf of autograd: what comes later in the model
    has a graph, what comes before runs without one."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: tuple, output: Any) -> Any:
        leaf = residual_of(output).detach().requires_grad_()
        leaves.append(leaf)
        torch.set_grad_enabled(True)  # until `no_grad` below restores what was
        # A view: torch's FLOP counter puts hooks on what goes into a module, which `autograd.grad` refuses on leaves.
        return with_residual(output, leaf.view_as(leaf))

    handle = decoder.layers[layer].register_forward_hook(cut)
    try:
        with torch.no_grad():
            yield leaves
    finally:
        handle.remove()
