"""Full fine-tuning by several processes of which each keeps a part of the weights, gradients and optimiser's state."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.resumable import Resumable
from harness.model.decoder import find_decoder

_OPTIMISER, _SCHEDULE = "optimizer.pt", "scheduler.pt"
"""transformers' names of what a checkpoint has in these files."""


class Sharded(Resumable):
    """Mixin in front of a trainer: with `Ranks.sharded`, the model that it trains is torch's FSDP2 (`fully_shard`).

    Each decoder layer is put together for its forward and its backward, what is not in one for the whole step. Models
    with an adapter, of which little is trained, stay whole. What is written is whole, too, and is that of one process:
    checkpoints can be taken up by any number of processes, sharded or not.
    """

    _whole: nn.Module | None = None
    """The model as it was before it was sharded, without the memory of its parameters."""

    def whole_model(self) -> Any:
        """The trained model, every parameter whole; all processes must ask for it."""
        if self._whole is None:
            return self.model
        trainer: Any = self
        shards = dict(trainer.model.named_parameters())
        tensors = {
            id(empty): nn.Parameter(whole(shards[name].detach()), requires_grad=empty.requires_grad)
            for name, empty in self._whole.named_parameters()
        }
        for module in self._whole.modules():
            for name, empty in module.named_parameters(recurse=False, remove_duplicate=False):
                setattr(module, name, tensors[id(empty)])
        return self._whole

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """transformers', of the whole weights."""
        if self._whole is None:
            super().save_model(output_dir, _internal_call)
            return
        trainer: Any = self
        state = self._gathered(trainer.model.state_dict())
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        if self.meter.ranks.sharded and not hasattr(trainer.model, "peft_config"):
            self._whole = _without_memory(trainer.model)
            _shard(trainer.model)
            # It would put DDP around the model; this leaves it the rest, such as mixed precision.
            trainer.accelerator.prepare_model = partial(trainer.accelerator.prepare_model, evaluation_mode=True)
        return super()._prepare_for_training(*args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        return whole(super()._clip_grad_norm(model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._whole is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        trainer: Any = self
        state = self._gathered(trainer.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / _OPTIMISER)
            torch.save(trainer.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._whole is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        trainer: Any = self
        saved = torch.load(Path(checkpoint) / _OPTIMISER, map_location="cpu", mmap=True, weights_only=True)
        parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        for number, state in saved["state"].items():
            saved["state"][number] = {name: _part(value, parameters[number]) for name, value in state.items()}
        trainer.optimizer.load_state_dict(saved)
        trainer.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULE, weights_only=True))

    def _gathered(self, state: Any) -> Any:
        """``state`` with whole tensors in the host's memory on rank 0; on others, which need them not, with none."""
        if isinstance(state, dict):
            return {key: self._gathered(value) for key, value in state.items()}
        if not isinstance(state, Tensor):
            return state
        tensor = whole(state)
        return tensor.cpu() if self.meter.ranks.rank == 0 else None


def whole(tensor: Any) -> Any:
    """What all processes have of a tensor that is dealt out to them; anything else as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shard(model: nn.Module) -> None:
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for layer in find_decoder(model).layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _part(value: Any, parameter: Tensor) -> Any:
    """This process's part of a state that has a number for each of a parameter's."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(value, Tensor) and isinstance(parameter, DTensor) and value.shape == parameter.shape):
        return value
    mine = value.to(parameter.device)
    return distribute_tensor(mine, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes alone."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)  # type: ignore[arg-type]
