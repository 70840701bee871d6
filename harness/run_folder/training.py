"""The curve of a fit: one line for each optimiser step, written as it is done; cells/<cell>/training.jsonl."""

import json
from pathlib import Path

from pydantic import Field, ValidationError

from harness.files import Document, write_text


class TrainingStep(Document):
    """One optimiser step as TRL logged it, each figure the mean over its batch; None where it is not a finite number.

    ``training`` counts the trainings of a fit from 1 (RAHF has two or three), ``stage`` is the bill's, ``step`` counts
    from 1 and ``steps`` is how many there will be: None under a FLOP limit, where nobody knows. ``learning_rate`` is
    the one that the step was taken with, ``grad_norm`` the gradient's length before it was clipped. ``accuracy`` (share
    of pairs whose chosen answer has the higher reward) and ``margin`` (chosen minus rejected reward) are there for
    methods that know rewards; ``figures`` is all else that the trainer logs.
    """

    training: int
    stage: str
    step: int
    steps: int | None
    epoch: float
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    accuracy: float | None = None
    margin: float | None = None
    figures: dict[str, float | None] = Field(default={})


class Curve:
    """The file ``path``, which need not exist. One process at a time writes.

    for step in RunFolder("runs/sandbox").cell("dpo__n300__s0").curve.steps:
        print(step.step, step.loss)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def steps(self) -> tuple[TrainingStep, ...]:
        """All steps so far; none where nothing was trained. A line that a killed process left unfinished is not read.

        Raises ValueError naming file:line for a line that is no step.
        """
        if not self.path.is_file():
            return ()
        steps = []
        for number, line in enumerate(self.path.read_bytes().rpartition(b"\n")[0].splitlines(), 1):
            try:
                steps.append(TrainingStep.model_validate(json.loads(line)))
            except (ValueError, ValidationError) as problem:
                text = str(problem).splitlines()[0]
                raise ValueError(f"{self.path}:{number}: not a step of a training: {text}; remove the file") from None
        return tuple(steps)

    def append(self, step: TrainingStep) -> None:
        """Add a step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(_line(step).encode())

    def cut(self, training: int, step: int) -> None:
        """Forget what comes after ``step`` of ``training``: it is done again from there."""
        if self.path.is_file():
            kept = [one for one in self.steps if (one.training, one.step) <= (training, step)]
            write_text(self.path, "".join(map(_line, kept)))


def _line(step: TrainingStep) -> str:
    return json.dumps(step.model_dump(mode="json", exclude_defaults=True), allow_nan=False) + "\n"
