"""One sitting of a fit that may take several: its curve, its checkpoints, and how far it is."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.files import content_hash, read_json, read_sealed, write_json, write_sealed
from harness.run_folder.training import Curve, TrainingStep

GOING_ON = "going on behind"
"""How a message begins that says that an earlier sitting did something already."""
_PAUSE = 1.0  # seconds between two messages
_SEAL = ".seal.json"


class Sitting:
    """What a method that trains is given through its meter; without one it keeps no curve and no checkpoints.

    ``curve`` gets a line a step. In ``folder`` each training of the fit has a folder for its checkpoints, one at least
    every ``minutes`` (0: none), and for its result, where another training builds on it: a fit that was killed goes on
    from there. ``tell`` is told (how far it is, step), about once a second.

    The folder belongs to one fit (see `check`). Of several processes that share a fit one ``writes``; the others only
    read checkpoints.
    """

    def __init__(
        self,
        curve: Curve,
        folder: Path,
        *,
        minutes: float,
        tell: Callable[[str, int], object] = lambda text, step: None,
        writes: bool = True,
    ) -> None:
        self.curve, self.folder, self.minutes, self.tell, self.writes = curve, folder, minutes, tell, writes
        self._fit: Mapping[str, Any] = {}
        self._trainings = 0
        self._told = self._began = self._saved = time.monotonic()
        self._share = 0.0

    def check(self, fit: Mapping[str, Any]) -> None:
        """Raise ValueError when the folder has checkpoints of a fit other than ``fit``; else it is for this one."""
        self._fit = json.loads(json.dumps(fit))
        if not self.writes:
            return
        there = read_json(self._description)
        if there is None or there == self._fit:
            return
        if not any(self.folder.glob(f"training-*/*{_SEAL}")):
            self._description.unlink()  # it was given up before there was anything to go on from
            return
        keys = [key for key in {**there, **self._fit} if there.get(key) != self._fit.get(key)]
        raise ValueError(
            f"{str(self.folder)!r} has the checkpoints of an unfinished fit that differs in {', '.join(keys)}; go on "
            "with that one as it was begun, or remove the folder to begin anew"
        )

    def training(self) -> tuple[int, Path]:
        """(number, folder) of the next training of the fit."""
        self._trainings += 1
        folder = self.folder / f"training-{self._trainings}"
        if self.minutes and self.writes and not self._description.is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(self._description, self._fit)
        return self._trainings, folder

    def begin(self, training: int, step: int, share: float) -> None:
        """``training`` begins, behind ``step`` (0 from the start), with ``share`` of it done."""
        if not self.writes:
            return
        self.curve.cut(training, step)
        self._began = self._saved = time.monotonic()
        self._share = share
        if step:
            self.tell(f"{GOING_ON} step {step}", step)

    def note(self, step: TrainingStep, share: float) -> None:
        """Keep a line of the curve; ``share`` of the training (0 to 1) is done."""
        if not self.writes:
            return
        self.curve.append(step)
        now = time.monotonic()
        if now - self._told >= _PAUSE or share >= 1:
            self._told = now
            text = f"{step.stage}, step {step.step}" + ("" if step.steps is None else f" of {step.steps}")
            loss = "" if step.loss is None else f", loss {step.loss:.4g}"
            left = (now - self._began) * (1 - share) / max(share - self._share, 1e-9)
            self.tell(f"{text}{loss}, {_duration(left)} left", step.step)

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return bool(self.minutes) and time.monotonic() - self._saved >= 60 * self.minutes

    def saved(self) -> None:
        """A checkpoint is complete."""
        self._saved = time.monotonic()

    def over(self) -> None:
        """The fit's result is kept elsewhere: the checkpoints go, the curve stays."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _description(self) -> Path:
        return self.folder / "fit.json"


def seal(folder: Path) -> None:
    """Say that a checkpoint, or a training's result, is whole: a hash of what it holds is written beside it."""
    write_sealed(folder.with_name(folder.name + _SEAL), {"sha256": content_hash(folder)})


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` was sealed and holds what it held then; what is not whole is never gone on from."""
    try:
        found = read_sealed(folder.with_name(folder.name + _SEAL))
    except ValueError:
        return False
    return found is not None and found == {"sha256": content_hash(folder)}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
