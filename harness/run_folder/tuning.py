"""What a tuned cell tried before its fit: cells/<cell>/tuning/, with trials.jsonl and best.json."""

import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from harness.files import Document
from harness.seals import read_line, sealed_line


class Trial(Document):
    """One trial: a fit on the fit part of the cell's triples, scored on the validation part.

    ``trial`` counts from 1, which tries the variant's own values. ``params`` are the tuned hyper-parameters as the
    suite writes them, ``score`` what is maximised, ``chosen`` the mean log p(chosen) in nats per token; both are None
    for a trial with an ``error``, whose method could not be made, fitted or scored, and ``chosen`` where a judge's
    ratings are maximised without a floor. ``passed``: ``chosen`` is not below the floor. ``shares`` is the earlier
    trial whose fit served this one too. FLOPs are executed ones; those of a trial that was interrupted and begun again
    are counted once.
    """

    trial: int
    params: dict[str, Any]
    score: float | None
    chosen: float | None
    passed: bool
    error: str | None = None
    shares: int | None = None
    fit_flops: int
    score_flops: int
    seconds: float

    @property
    def executed_flops(self) -> int:
        """FLOPs of its fit, if it has one of its own, and of scoring it."""
        return self.fit_flops + self.score_flops


class Best(Document):
    """How the tuning of a cell ended.

    ``winner`` is the number of a trial and ``params`` its values; ``fallback``: no trial passed the floor, so trial 1,
    the variant's own values, stands. ``base_score`` and ``base_chosen`` are the unaligned model's on the validation
    part. The parts have ``n_fit`` and ``n_validation`` triples on ``fit_prompts`` and ``validation_prompts`` prompts,
    and ``split_hash`` is sha256 of both. FLOPs and seconds are those of all trials and of scoring the base, not of the
    fit that follows.
    """

    winner: int
    fallback: bool
    params: dict[str, Any]
    base_score: float
    base_chosen: float | None
    n_fit: int
    n_validation: int
    fit_prompts: int
    validation_prompts: int
    split_hash: str
    executed_flops: int
    seconds: float
    sealed: ClassVar[bool] = True


class TuningFolder:
    """The folder ``path``, which need not exist. One process at a time writes.

    for trial in RunFolder("runs/sandbox").cell("dpo__n300__s0").tuning.trials:
        print(trial.trial, trial.params, trial.score)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials that are over, in order; a line that a killed process left unfinished is not read.

        Raises ValueError naming file:line for a line that is no trial or not the next one.
        """
        return tuple(self._read()[0])

    @property
    def best(self) -> Best | None:
        """How it ended; None while there are trials to come, and where nothing is tuned."""
        path = self.path / "best.json"
        return Best.read(path) if path.is_file() else None

    def append(self, trial: Trial) -> None:
        """Add a trial. When this returns it is on disk."""
        self.path.mkdir(parents=True, exist_ok=True)
        _, size = self._read()
        with self._trials.open("ab") as file:
            file.truncate(size)
            file.write(sealed_line(trial.model_dump(mode="json")))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, best: Best) -> None:
        """Declare the tuning over."""
        best.write(self.path / "best.json")

    def restart(self) -> None:
        """Forget the trials."""
        self._trials.unlink(missing_ok=True)

    @property
    def _trials(self) -> Path:
        return self.path / "trials.jsonl"

    def _read(self) -> tuple[list[Trial], int]:
        """The trials, and the bytes up to the end of the last one."""
        if not self._trials.is_file():
            return [], 0
        whole = self._trials.read_bytes().rpartition(b"\n")[0]
        found: list[Trial] = []
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            try:
                trial = Trial.model_validate(read_line(line))
                if trial.trial != number:
                    raise ValueError(f"trial {trial.trial} where {number} is expected")
            except (ValueError, ValidationError) as problem:
                text = str(problem).splitlines()[0]
                raise ValueError(
                    f"{self._trials}:{number}: not a trial: {text}; rerun the suite, which makes it again"
                ) from None
            found.append(trial)
        return found, len(whole) + 1 if whole else 0
