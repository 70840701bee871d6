"""How the trainings of a run went: their curves as small multiples, a row for each trained variant."""

from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple, cast

from harness.run_folder.training import TrainingStep
from reports.figures import STYLE, save
from reports.run import Cell, Run

_PANELS = {
    "loss": "loss",
    "accuracy": "reward accuracy",
    "margin": "reward margin",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00", "#7B3FA0")
_POINTS = 400
"""A longer curve is drawn as the means of so many parts."""


class Curves(NamedTuple):
    """A drawing of curves, and sentences that say what they show."""

    svg: str
    about: str


def write_training_figure(run: Run, folder: Path) -> Curves | None:
    """Write ``training.png`` and ``.svg`` to ``folder``: curves of every trained variant at its largest budget.

    Returns what is in the latter; None, and no file, where nothing has a curve.
    """
    rows = {variant: found for variant in run.plan.labels if (found := _curves(run, variant))}
    if not rows:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    every = [step for found in rows.values() for _, steps in found for step in steps]
    panels = [name for name in _PANELS if any(getattr(step, name) is not None for step in every)]
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(2.5 * len(panels), 1.5 * len(rows) + 0.5), dpi=110, layout="constrained")
        axes = figure.subplots(len(rows), len(panels), squeeze=False)
        for line, (variant, found) in zip(axes, rows.items(), strict=True):
            for axis, name in zip(line, panels, strict=True):
                _draw(axis, name, found)
            line[0].set_ylabel(run.plan.labels[variant], fontsize=8)
        for axis, name in zip(axes[0], panels, strict=True):
            axis.set_title(_PANELS[name], fontsize=9, loc="left")
        for axis in axes[-1]:
            axis.set_xlabel("optimiser step", fontsize=8)
        save(figure, folder, "training")
    longest = max(len(steps) for found in rows.values() for _, steps in found)
    shown = f"; of more than {_POINTS} steps, the means of {_POINTS} parts" if longest > _POINTS else ""
    about = (
        "As the trainer logged each optimiser step, mean over its batch, a line a seed, each variant at its largest "
        f"budget{shown}. A method's loss is its own and compares with no other's; dotted lines part the trainings of "
        "one fit. All figures of all steps are in each cell's training.jsonl."
    )
    return Curves((folder / "training.svg").read_text(encoding="utf-8"), about)


def _curves(run: Run, variant: str) -> list[tuple[Cell, tuple[TrainingStep, ...]]]:
    """The cells of ``variant`` at its largest budget that have a curve, by seed."""
    fitted = [cells for name, _, cells in run.fitted() if name == variant]
    found = [(cell, cell.folder.curve.steps) for cell in (fitted[-1] if fitted else ())]
    return [(cell, steps) for cell, steps in found if steps]


def _draw(axis: Any, name: str, found: Sequence[tuple[Cell, tuple[TrainingStep, ...]]]) -> None:
    drawn = False
    for cell, steps in found:
        values = [nan if (value := getattr(step, name)) is None else value for step in steps]
        if all(map(isnan, values)):
            continue
        drawn = True
        colour = _COLOURS[cell.planned.seed % len(_COLOURS)]
        alone = {"marker": "."} if len(values) == 1 else {}
        axis.plot(*_binned(values), color=colour, linewidth=0.9, alpha=0.85, **alone)
    steps = found[0][1]
    for place in range(1, len(steps)):
        if steps[place].training != steps[place - 1].training:
            axis.axvline(place + 0.5, color="#6B6B6B", linewidth=0.8, linestyle=":")
    axis.set_visible(drawn or name == "loss")  # the variant's name stands at its loss
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _binned(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """(steps, values) to draw: all, or the means of `_POINTS` parts."""
    import numpy as np

    places = np.arange(1, len(values) + 1)
    if len(values) <= _POINTS:
        return places.tolist(), list(values)
    parts = [np.array_split(column, _POINTS) for column in (places, np.asarray(values))]
    x, y = ([float(np.nanmean(part)) if not np.isnan(part).all() else nan for part in one] for one in parts)
    return x, y
