"""A second device for tests on a machine that has none: tensors that say they are there, and mix with no others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("cuda", 1)
_DEVICE = Tensor.device.__get__  # type: ignore[attr-defined]


class Far(Tensor):
    """A tensor on the second device."""


class TwoDevices(TorchFunctionMode):
    """Inside, whatever is computed of `Far` tensors is far, and an operation on tensors of both devices raises.

    As on real devices, single numbers may be mixed; parameters belong to wherever they are used.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            if func == _DEVICE:
                return FAR if isinstance(args[0], Far) else func(*args)
            if func in (Tensor.to, Tensor.cpu, Tensor.tolist, Tensor.item):
                return _moved(func, args, kwargs)
            tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
            if func in (torch.autograd.grad, Tensor.requires_grad_):  # on these very tensors, not on views of them
                return tree_map(_far, func(*args, **kwargs))
            if kwargs.get("device") == FAR:
                kwargs = {**kwargs, "device": torch.device("cpu")}
                tensors.append(torch.zeros(()).as_subclass(Far))
            placed = [one for one in tensors if one.dim() and not isinstance(one, nn.Parameter)]
            far = any(isinstance(one, Far) for one in tensors)
            if far and any(not isinstance(one, Far) for one in placed) and func is not Tensor.copy_:
                raise RuntimeError(f"Expected all tensors to be on the same device: {getattr(func, '__name__', func)}")
            result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
            return tree_map(_far, result) if far else result


def _plain(one: Any) -> Any:
    return one.as_subclass(Tensor) if isinstance(one, Far) else one


def _far(one: Any) -> Any:
    return one.as_subclass(Far) if isinstance(one, Tensor) and not isinstance(one, Far | nn.Parameter) else one


def _moved(func: Any, args: Any, kwargs: Any) -> Any:
    """What goes from one device to another, or to Python."""
    named = [one.device if isinstance(one, Tensor) else one for one in (*args[1:], kwargs.get("device"))]
    places = [torch.device(one) if isinstance(one, str) else one for one in named]
    wanted = [FAR if isinstance(one, Far) else place for one, place in zip((*args[1:], None), places, strict=True)]
    to_far = FAR in wanted
    rest = tuple(torch.device("cpu") if place == FAR else _plain(one) for one, place in zip(args[1:], wanted))  # noqa: B905
    result = func(_plain(args[0]), *rest, **{k: v for k, v in kwargs.items() if v != FAR})
    stays = isinstance(args[0], Far) and func is Tensor.to and not any(isinstance(p, torch.device) for p in wanted)
    return _far(result) if to_far or stays else result


@contextmanager
def spread(model: Any, layers: nn.ModuleList, first_far: int) -> Iterator[None]:
    """``model`` with its layers from ``first_far`` on, and what comes after them, on the second device, as accelerate
    places them: what a layer is given goes to its device, what the whole model gives comes back."""

    def forward(place: torch.device) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            move = lambda one: one.to(place) if isinstance(one, Tensor) else one  # noqa: E731
            cache = kwargs.pop("past_key_values", None)  # each layer's keys and values are where it is
            args, kwargs = tree_map(move, (args, kwargs))
            return args, kwargs if cache is None else {**kwargs, "past_key_values": cache}

        return hook

    def back(_module: Any, _args: Any, output: Any) -> Any:
        for name, value in list(output.items()):
            if isinstance(value, Tensor):
                output[name] = value.to("cpu")
        return output

    handles = [layer.register_forward_pre_hook(forward(FAR), with_kwargs=True) for layer in layers[first_far:]]
    handles.append(model.register_forward_hook(back))
    try:
        with TwoDevices():
            yield
    finally:
        for handle in handles:
            handle.remove()
