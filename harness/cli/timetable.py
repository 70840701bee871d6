"""How a forecast on devices elsewhere is shown: a table of cells, then what all of them take."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isinf
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.cli.progress import duration

if TYPE_CHECKING:
    from harness.experiment.run import Prepared
    from harness.experiment.timetable import Timetable

_NAMED = 6


@dataclass(frozen=True)
class OnPaper:
    """``count`` devices of the kind called ``device``, in ``file`` or in the package; ValueError where in neither."""

    device: str
    count: int
    file: Path | None = None

    def __post_init__(self) -> None:
        from harness.compute.devices import find_device

        find_device(self.device, self.file)


def timetable_of(prepared: "Prepared", paper: OnPaper | None) -> "Timetable | None":
    """The forecast of a prepared suite on such devices; ValueError for a device that is not known."""
    if paper is None:
        return None
    from harness.compute.devices import Speed
    from harness.experiment.bills import group_bills
    from harness.experiment.forecast import Forecaster
    from harness.experiment.timetable import Timetable

    base = prepared.suite.file.base
    speed = Speed.of(paper.device, base.dtype, paper.file)
    forecaster = Forecaster(base)  # what is counted as on a CPU differs by a product of attention's backward at most
    return Timetable.of(prepared, group_bills(prepared, forecaster), forecaster, speed, paper.count)


def print_timetable(timetable: "Timetable", console: Console) -> None:
    """Hours, memory, disk, verdicts and money of a cell of each variant and budget, and of all cells to do."""
    from harness.run_folder.plan import budget_text

    speed = timetable.speed
    priced = any(costs.money is not None for costs in timetable.costs)
    table = Table(title=f"forecast of a cell on one {speed.device.what}", title_justify="left", box=SIMPLE_HEAD)
    table.pad_edge = False
    for column in ("variant", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("budget", "cells", "fit FLOPs", "fit", "tuning", "answers", "all", "memory", "disk", "verdicts"):
        table.add_column(column, justify="right", no_wrap=True)
    if priced:
        table.add_column("money", justify="right")
    for group, costs in zip(timetable.groups, timetable.costs, strict=True):
        flops = "-" if costs.fit_flops is None else f"{costs.fit_flops:.3g}"
        parts = (costs.fit_seconds, costs.tuning_seconds, costs.answering_seconds, costs.seconds)
        row = [group.point, group.cells[0].method, budget_text(group.budget) if group.budget else "none"]
        row += [str(len(group.left)), flops, *("-" if part is None else _time(part) for part in parts)]
        row += [_size(costs.memory) + "!" * (costs.memory > speed.memory), _size(costs.disk), f"{costs.verdicts:,}"]
        table.add_row(*row, *(["-" if costs.money is None else f"{costs.money:,.2f}"] if priced else []))
    console.print(table)
    for line in _summary(timetable):
        console.print(line, markup=False)


def _summary(timetable: "Timetable") -> Iterator[str]:
    """What is assumed, and what all cells to do take together."""
    speed, assumed, cells = timetable.speed, timetable.speed.assumed, timetable.cells.values()
    width = speed.device.bandwidth_gb_s
    memory = "" if width is None else f"{width:,.4g} GB/s, of which {assumed.decoding:.3g} in decoding; "
    yield (
        f"assumed of {speed.name} ({speed.device.source}): {speed.peak / 1e12:.4g} TFLOP/s, of which "
        f"{assumed.training:.3g} in training and {assumed.forward:.3g} in forward passes; {memory}at least "
        f"{1000 * assumed.layer_seconds:.3g} ms a layer and step of decoding"
    )
    if checked := timetable.checked:
        ratios = sorted(forecast / taken for forecast, taken in checked.values())
        low, middle, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        yield (
            f"{len(ratios)} cells are over: forecast / taken, of tuning and fit, is {middle:.2f} in the median and "
            f"{low:.2f} to {high:.2f} in the middle half"
        )
    if timetable.whole is not None:
        forecast, taken = timetable.whole
        yield f"the run is over: its workers took {_hours(taken)}, and the forecast is {_hours(forecast)}"
    if not cells:
        yield "nothing is to do"
        return
    path, work = timetable.critical, sum(one.flops for one in cells)
    yield f"all {len(cells)} cells to do: {work:.3g} FLOPs, {_hours(timetable.seconds)} of one device"
    yield (
        f"on {timetable.devices} of them, longest cells first: {_hours(path.seconds)}; critical path: "
        f"{_named(path.cells)}"
    )
    most = max(one.memory for one in cells)
    whole = "" if isinf(speed.memory) else f"; one device has {_size(speed.memory)}"
    yield f"memory: at most about {_size(most)} a cell, without SAEs and logits{whole}"
    if too_large := timetable.too_large:
        yield (
            f"{len(too_large)} cells do not fit one (marked !): {_named(too_large)}; take a smaller batch_size with "
            "accumulation, gradient_checkpointing, or several devices for a fit"
        )
    yield f"disk: at least {_size(sum(one.disk for one in cells))}"
    spent = [one.money for one in cells if one.money is not None]
    money = f", at most {sum(spent):,.2f} by their prices, if all are as long as they may be" if spent else ""
    yield f"judges: {sum(one.verdicts for one in cells):,} verdicts{money}"
    if (price := speed.device.price_an_hour) is not None:
        yield f"price of the devices while they work: {price * timetable.seconds / 3600:,.2f}"
    missing = [f"fits or tunings of {len(timetable.unpredicted)} cells"] * bool(timetable.unpredicted)
    missing += [*timetable.uncounted, "judges", "loading models"]
    yield f"not in the hours: {', '.join(missing)}"


def _named(cells: Sequence[str]) -> str:
    more = f" and {len(cells) - _NAMED} more" if len(cells) > _NAMED else ""
    return ", ".join(cells[:_NAMED]) + more


def timetable_json(timetable: "Timetable") -> dict[str, Any]:
    """The same for programs; seconds, bytes and FLOPs, not rounded."""
    cells = timetable.cells
    spent = [one.money for one in cells.values() if one.money is not None]
    return {
        "device": {
            "name": timetable.speed.name,
            **timetable.speed.device.model_dump(),
            "assumed": timetable.speed.assumed.model_dump(),
        },
        "devices": timetable.devices,
        "cells": {
            name: {**asdict(costs), "flops": costs.flops, "seconds": costs.seconds} for name, costs in cells.items()
        },
        "lanes": [asdict(lane) for lane in timetable.lanes],
        "device_seconds": timetable.seconds,
        "seconds": timetable.critical.seconds,
        "critical_path": list(timetable.critical.cells),
        "flops": sum(one.flops for one in cells.values()),
        "memory": max((one.memory for one in cells.values()), default=0),
        "too_large": timetable.too_large,
        "disk": sum(one.disk for one in cells.values()),
        "verdicts": sum(one.verdicts for one in cells.values()),
        "money": sum(spent) if spent else None,
        "checked": {name: {"forecast": a, "taken": b} for name, (a, b) in timetable.checked.items()},
        "whole": timetable.whole and dict(zip(("forecast", "taken"), timetable.whole, strict=True)),
        "not_predicted": timetable.unpredicted,
        "not_counted": list(timetable.uncounted),
    }


def _time(seconds: float) -> str:
    return "0" if not seconds else duration(seconds) if seconds >= 60 else f"{seconds:.2g} s"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else duration(seconds)


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
