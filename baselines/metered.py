"""Trainings through TRL under a meter: a mixin for its trainers, and passes over the rows before a training."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, TypeVar

from torch import nn

from baselines.divided import Divided
from baselines.rows import IGNORED
from baselines.schedule import rate_share
from harness.compute import Meter, signature_of
from harness.compute.forms import Form

T = TypeVar("T")


class Metered(Divided):
    """Mixin in front of a TRL trainer: rows are token ids already, each step is billed, a FLOP limit ends it.

    ``passes`` names the tensors whose sum is the number of tokens trained on in a step; ``reference_passes`` those
    (a name as often as it is passed) that go forward only besides. Both enter the formula figure alone. ``labelled``
    names what says which positions TRL's fused LM head works on: their number decides the FLOPs too. ``batches`` names
    the tensors of token ids that go through a model as one batch, padded to the longest of them; where they and the
    labelled positions are not all that decides a step's FLOPs, it is empty, and more steps are counted.
    """

    passes: ClassVar[tuple[str, ...]] = ("attention_mask",)
    reference_passes: ClassVar[tuple[str, ...]] = ()
    labelled: ClassVar[tuple[str, ...]] = ("completion_mask",)
    batches: ClassVar[tuple[tuple[str, ...], ...]] = (("input_ids",),)

    def __init__(self, *args: Any, meter: Meter, **kwargs: Any) -> None:
        self.meter = meter
        self._flops_before = meter.executed_flops
        with _without_progress_bars():
            super().__init__(*args, **kwargs)
        from transformers import PrinterCallback

        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        self.add_callback(_stop_at_limit(self))  # type: ignore[attr-defined]
        self.divide()

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def tokenize_row(self, feature: Any) -> Any:
        """What TRL's experimental trainers call in place of `_prepare_dataset`."""
        return feature

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        share = self.take_share(inputs)
        billed = self.meter.step(
            signature_of(inputs, *self._labelled(inputs)),
            form=self._form(inputs),
            tokens=_tokens(inputs, self.passes),
            reference_tokens=_tokens(inputs, self.reference_passes),
            kind="train",
        )
        with self.meter.divided(), billed if share else nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if not loss.isfinite():
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise ValueError(f"the training loss is {float(loss)} at optimiser step {step}; lower learning_rate")
        return loss

    def _labelled(self, inputs: Any) -> list[int]:
        masks = (inputs[name] != (IGNORED if name == "labels" else 0) for name in self.labelled if name in inputs)
        return [int(mask.sum()) for mask in masks]

    def _form(self, inputs: Any) -> Form | None:
        """Tokens and pairs of tokens of each batch, padding included, and labelled positions."""
        form = []
        for names in self.batches:
            shapes = [inputs[name].shape for name in names]
            rows, length = sum(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
            form += [rows * length, rows * length**2]
        return (*form, *self._labelled(inputs)) if form else None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """`rate_share` over the steps or, under a FLOP limit, over the limit; every step counts as done in its own."""
        from torch.optim.lr_scheduler import LambdaLR

        args: Any = self.args  # type: ignore[attr-defined]
        schedule, limit = str(args.lr_scheduler_type.value), self.meter.flops_limit
        if limit is None:
            warmup = args.get_warmup_steps(num_training_steps)

            def share(step: int) -> float:
                return rate_share(step + 1, num_training_steps, step=1, warmup=warmup, schedule=schedule)
        else:
            follower = _follow_limit(self, max(limit - self._flops_before, 1), args.warmup_steps, schedule)
            self.add_callback(follower)  # type: ignore[attr-defined]

            def share(step: int) -> float:
                return follower.share

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)  # type: ignore[attr-defined]
        return self.lr_scheduler


def measured_batches(lengths: Sequence[int], batch_size: int, meter: Meter) -> Iterator[list[int]]:
    """Rows (numbers, by their ``lengths``) to pass before a training, in batches: all, similar lengths together.

    Several processes share them (see `Meter.shared`). With a FLOP limit the first rows, in their order, until a quarter
    of what is left of the limit is used: a forward pass takes about a third of a training step. Where that ends is
    known as one goes along, so there every process passes them all.
    """
    order, limit, before = list(range(len(lengths))), meter.flops_limit, meter.executed_flops
    if limit is None:
        order.sort(key=lambda i: (-lengths[i], i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if limit is None:
        yield from meter.shared(batches)
        return
    for batch in batches:
        yield batch
        if meter.executed_flops >= before + (limit - before) / 4:
            return


def collected(mine: list[T], meter: Meter) -> list[T]:
    """What was made of each of `measured_batches`, by whichever process."""
    return mine if meter.flops_limit is not None else meter.ranks.collect(mine)


def experimental() -> warnings.catch_warnings:
    """For imports from trl.experimental: without TRL's notice that it is."""
    from trl.import_utils import TRLExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=TRLExperimentalWarning)


@contextmanager
def fused_head(model: nn.Module) -> Iterator[None]:
    """TRL's fused LM head inside: on labelled positions alone, on every device; off the instance afterwards.

    TRL itself does so on CUDA only, and elsewhere every position, prompts and padding included, for accelerators that
    would compile anew for each number. With a large vocabulary that is most of a training on a CPU.
    """
    from trl.trainer import utils

    before = utils._use_triton
    utils._use_triton = lambda device: True  # asked nothing else there; the kernels have their own
    try:
        yield
    finally:
        utils._use_triton = before
        unpatch(model)


def unpatch(model: nn.Module) -> None:
    """Take off what TRL (fused LM head) and accelerate put on an instance, also below an adapter.

    A copy of a model that accelerate has marked as prepared would get no DDP.
    """
    for part in (model, getattr(model, "get_base_model", lambda: model)()):
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(part).pop(name, None)


def _stop_at_limit(trainer: Metered) -> Any:
    from transformers import TrainerCallback

    class StopAtLimit(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.meter.exhausted:
                control.should_training_stop = True
                trainer.stopped_at = {"step": state.global_step, "epoch": state.epoch}

    return StopAtLimit()


def _follow_limit(trainer: Metered, available: int, warmup: float, schedule: str) -> Any:
    """Sets each step's rate when its FLOPs are known, before the optimiser uses it; ``available`` is what is left of
    the limit when training starts, ``warmup`` a share of it."""
    from transformers import TrainerCallback

    class FollowLimit(TrainerCallback):
        share = 0.0  # that of the latest step
        used = trainer.meter.executed_flops - trainer._flops_before  # by an earlier sitting

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
            used = trainer.meter.executed_flops - trainer._flops_before
            step, self.used = used - self.used, used
            self.share = rate_share(used, available, step=step, warmup=warmup * available, schedule=schedule)
            for group in optimizer.param_groups:
                group["lr"] = self.share * group["initial_lr"]

    return FollowLimit()


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """The experimental trainers map functions over the rows that leave them as they are; no bar for that."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _tokens(inputs: Any, names: Sequence[str]) -> int:
    return sum(int(inputs[name].sum()) for name in names if name in inputs)
