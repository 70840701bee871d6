"""Trainings through transformers' trainer: they write a curve, and one that was killed goes on in another sitting."""

import math
import shutil
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.compute import Meter
from harness.compute.sitting import is_whole, seal
from harness.run_folder.training import TrainingStep

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # what it is mixed into brings the trainer, and transformers' takes seconds to import

_NAMED = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
}
"""The trainer's names of what a curve has a field for."""
_BILL = "bill.pt"
_LEFT_OUT = {"epoch", "num_tokens"}  # a field of its own; what this sitting alone has seen


class Resumable(_Trainer):
    """Mixin in front of a trainer: `train_through` does what ``trainer.train()`` does, by the meter's sitting if any.

    A checkpoint is transformers' own (weights, optimiser, schedule, random numbers) and our ``bill.pt``: the meter's
    state and the random numbers that the order of the rows of the epoch was drawn with. So what comes out is that of an
    uninterrupted training, on a CPU to the bit. One that was damaged is not gone on from. A collator that draws has
    ``skip(rows)``, to draw as for these rows.
    """

    meter: Meter
    stopped_at: dict[str, float] | None = None
    _stage = ""
    _number = 0  # of this training in the fit, from 1
    _flops_before = 0
    _order: Tensor | None = None
    """State of torch's generator before the order of this epoch's rows was drawn."""
    _order_to_draw: Tensor | None = None
    """The same, of the epoch to be taken up."""

    def train_through(self, stage: str, *, followed: bool = False) -> None:
        """Train, and tell the meter how long; what an earlier sitting did is not done again.

        ``followed``: what comes of it is kept like a checkpoint, because another training of the fit builds on it.
        """
        meter, sitting = self.meter, self.meter.sitting
        if sitting is None:
            self.train()
            self._account()
            return
        self._stage = stage
        self._number, folder = sitting.training()
        result, ranks = folder / "result", meter.ranks
        if ranks.first(is_whole(result)):
            self._load_from_checkpoint(str(result))
            self._take_up(result)
            return
        self.args.output_dir = str(folder)
        self.add_callback(_curve(self))
        found = (one for one in folder.glob("checkpoint-*") if one.is_dir() and is_whole(one))
        checkpoint = ranks.first(next(found, None))  # before any of them begins to write others
        step = 0 if checkpoint is None else self._take_up(checkpoint)
        sitting.begin(self._number, step, self._share(step))
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self._account()
        if followed and sitting.minutes:
            with meter.aside():
                self.save_model(str(result))
            self._complete(result)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's, which is not on the bill."""
        with self.meter.aside():
            super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL would write one beside every checkpoint."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.meter.aside():
            super()._save_checkpoint(model, trial)
        self._complete(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return _NotedOrder(super()._get_train_sampler(*args, **kwargs), self)

    def _account(self) -> None:
        state = self.state
        self.meter.optimiser_steps += state.global_step
        self.meter.epochs = state.epoch

    def _complete(self, folder: Path) -> None:
        """Add our part to a checkpoint; those before it are no longer needed."""
        state, sitting = self.state, self.meter.sitting
        assert sitting is not None
        meters = self.meter.ranks.gather(self.meter.state())  # by then each has put its random numbers into it, too
        if not sitting.writes:
            return
        saved = {
            "step": state.global_step,
            "stopped_at": self.stopped_at,
            "order": None if state.epoch % 1 == 0 else self._order,  # between two epochs the next draw is to come
            "meters": meters,
        }
        torch.save(saved, folder / _BILL)
        before = [other for other in folder.parent.iterdir() if other != folder]
        seal(folder)
        for other in before:
            if other.is_dir():
                shutil.rmtree(other)
            else:
                other.unlink()
        sitting.saved()

    def _take_up(self, checkpoint: Path) -> int:
        """Go on from our part of ``checkpoint``; returns how many steps were done."""
        trainer: Any = self
        saved = torch.load(checkpoint / _BILL, weights_only=True)
        meters, rank = saved["meters"], self.meter.ranks.rank
        # Of its own, because a step that is counted may differ from one that is not in its last bits.
        self.meter.restore(meters[rank if rank < len(meters) else 0])
        self.stopped_at, self._order_to_draw = saved["stopped_at"], saved["order"]
        if skip := getattr(trainer.data_collator, "skip", None):
            rows, size = len(trainer.train_dataset), trainer.args.train_batch_size
            size *= trainer.args.gradient_accumulation_steps
            epochs, steps = divmod(saved["step"], ceil(rows / size))
            skip(epochs * rows + steps * size)
        return saved["step"]

    def _share(self, step: int) -> float:
        """How much of the training is done, 0 to 1."""
        limit = self.meter.flops_limit
        if limit is not None:
            done, whole = self.meter.executed_flops - self._flops_before, limit - self._flops_before
        else:
            done, whole = step, self.state.max_steps
        return min(done / whole, 1.0) if whole > 0 else 0.0

    def _note_step(self, logs: dict[str, Any], state: Any) -> None:
        """Add a line to the curve."""
        sitting = self.meter.sitting
        assert sitting is not None
        figures = {name: _finite(value) for name, value in logs.items() if name not in _LEFT_OUT}
        named = {field: figures.pop(name, None) for name, field in _NAMED.items()}
        step = TrainingStep(
            training=self._number,
            stage=self._stage,
            step=state.global_step,
            steps=None if self.meter.flops_limit is not None else state.max_steps,
            epoch=state.epoch,
            figures=figures,
            **named,
        )
        sitting.note(step, self._share(state.global_step))


class _NotedOrder(torch.utils.data.Sampler):
    """A sampler whose draws can be made again: the trainer knows with which random numbers each epoch began."""

    def __init__(self, sampler: Any, trainer: Resumable) -> None:
        self._sampler, self._trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        # A trainer that takes up an epoch sets the generator to where the checkpoint left it when all are drawn.
        if self._trainer._order_to_draw is not None:
            torch.set_rng_state(self._trainer._order_to_draw)
            self._trainer._order_to_draw = None
        ranks = self._trainer.meter.ranks
        self._trainer._order = ranks.first(torch.get_rng_state())
        if ranks.rank == 0:
            return iter(self._sampler)
        torch.set_rng_state(self._trainer._order)
        drawn = list(self._sampler)
        # From here on numbers of its own: what dropout leaves out of its rows is not what rank 0 does.
        torch.manual_seed(int(torch.randint(2**62, ())) + ranks.rank)
        return iter(drawn)


def _curve(trainer: Resumable) -> Any:
    from transformers import TrainerCallback

    class Curve(TrainerCallback):
        """Notes what is logged, and asks for a checkpoint when one is due."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            sitting, ranks = trainer.meter.sitting, trainer.meter.ranks
            assert sitting is not None
            if sitting.minutes and ranks.first(sitting.due) and not control.should_training_stop:
                control.should_save = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:  # not what is said of the whole at the end
                trainer._note_step(logs, state)
            state.log_history.clear()  # it would be in every checkpoint, and the curve has it

    return Curve()


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
