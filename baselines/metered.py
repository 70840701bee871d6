"""Trainings through TRL under a meter: a mixin for its trainers, and passes over the rows before a training."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn

from baselines.rows import IGNORED
from harness.compute import Meter, signature_of


class Metered:
    """Mixin in front of a TRL trainer: rows are token ids already, each step is billed, a FLOP limit ends it.

    ``passes`` names the tensors whose sum is the number of tokens trained on in a step; ``reference_passes`` those
    (a name as often as it is passed) that go forward only besides. Both enter the formula figure alone. ``labelled``
    names what says which positions TRL's fused LM head works on: on CUDA their number decides the FLOPs too.
    """

    passes: ClassVar[tuple[str, ...]] = ("attention_mask",)
    reference_passes: ClassVar[tuple[str, ...]] = ()
    labelled: ClassVar[tuple[str, ...]] = ("completion_mask",)

    def __init__(self, *args: Any, meter: Meter, **kwargs: Any) -> None:
        self.meter = meter
        self.stopped_at: dict[str, float] | None = None
        self._flops_before = meter.executed_flops
        with _without_progress_bars():
            super().__init__(*args, **kwargs)
        from transformers import PrinterCallback

        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]
        self.add_callback(_stop_at_limit(self))  # type: ignore[attr-defined]

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def tokenize_row(self, feature: Any) -> Any:
        """What TRL's experimental trainers call in place of `_prepare_dataset`."""
        return feature

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        with self.meter.step(
            self.step_signature(inputs),
            tokens=_tokens(inputs, self.passes),
            reference_tokens=_tokens(inputs, self.reference_passes),
            kind="train",
        ):
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]

    def step_signature(self, inputs: Any) -> Any:
        """What decides a step's FLOPs: the shapes and, with TRL's fused LM head on CUDA, the labelled positions."""
        if self.args.device.type != "cuda":  # type: ignore[attr-defined]
            return signature_of(inputs)
        masks = (inputs[name] != (IGNORED if name == "labels" else 0) for name in self.labelled if name in inputs)
        return signature_of(inputs, *(int(mask.sum()) for mask in masks))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """TRL's own schedule over the steps, or under a FLOP limit the same shape over the limit's used share."""
        limit = self.meter.flops_limit
        if limit is None:
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        from torch.optim.lr_scheduler import LambdaLR

        args: Any = self.args  # type: ignore[attr-defined]
        available = max(limit - self._flops_before, 1)

        def multiplier(_: int) -> float:
            used = min((self.meter.executed_flops - self._flops_before) / available, 1.0)
            return rate_share(used, schedule=str(args.lr_scheduler_type.value), warmup=args.warmup_steps)

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, multiplier)  # type: ignore[attr-defined]
        return self.lr_scheduler


def rate_share(used: float, *, schedule: str, warmup: float) -> float:
    """Share of the learning rate when ``used`` (0-1) of the training is over; ``warmup`` is its first part."""
    if used < warmup:
        return used / warmup
    rest = (used - warmup) / (1 - warmup)
    shapes: dict[str, Callable[[float], float]] = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "constant": lambda _: 1.0,
    }
    return shapes[schedule](rest)


def measured_batches(lengths: Sequence[int], batch_size: int, meter: Meter) -> Iterator[list[int]]:
    """Rows (numbers, by their ``lengths``) to pass before a training, in batches: all, similar lengths together.

    With a FLOP limit the first rows, in their order, until a quarter of what is left of the limit is used: a forward
    pass takes about a third of a training step.
    """
    order, limit, before = list(range(len(lengths))), meter.flops_limit, meter.executed_flops
    if limit is None:
        order.sort(key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
        if limit is not None and meter.executed_flops >= before + (limit - before) / 4:
            return


def experimental() -> warnings.catch_warnings:
    """For imports from trl.experimental: without TRL's notice that it is."""
    from trl.import_utils import TRLExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=TRLExperimentalWarning)


@contextmanager
def unpatched(model: nn.Module) -> Iterator[None]:
    """Whatever TRL puts on the instance inside is taken off afterwards."""
    try:
        yield
    finally:
        unpatch(model)


def unpatch(model: nn.Module) -> None:
    """Take off the forward that TRL (fused LM head) or accelerate put on an instance, also below an adapter."""
    for part in (model, getattr(model, "get_base_model", lambda: model)()):
        for name in ("forward", "_original_forward"):
            vars(part).pop(name, None)


def _stop_at_limit(trainer: Metered) -> Any:
    from transformers import TrainerCallback

    class StopAtLimit(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.meter.exhausted:
                control.should_training_stop = True
                trainer.stopped_at = {"step": state.global_step, "epoch": state.epoch}

    return StopAtLimit()


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
