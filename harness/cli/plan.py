"""What ``dspa-bench run --dry-run`` prints: cells and their state, predicted bills, and what all of it may take."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.cli.progress import duration
from harness.cli.timetable import print_timetable, timetable_json

if TYPE_CHECKING:
    from harness.experiment.forecast import Forecaster
    from harness.experiment.outlook import Asked
    from harness.experiment.run import Prepared
    from harness.experiment.timetable import Timetable
    from harness.judging import Judge

PREVIEW_FLOPS = 10**12
"""What the plan measures on triples beforehand may take: some seconds on a CPU."""


def print_plan(prepared: "Prepared", console: Console, timetable: "Timetable | None" = None) -> None:
    """What a run would do: cells by variant and budget with their state, predicted bills, data, questions, machine.

    With a ``timetable`` that is on devices elsewhere: nothing is measured here, and no weights are read.
    """
    from harness.experiment.bills import group_bills
    from harness.experiment.forecast import Forecaster
    from harness.run_folder.plan import budget_text, flops_budget

    file, failures = prepared.suite.file, prepared.failures
    forecaster = Forecaster(file.base, device=file.execution.device)
    groups = timetable.groups if timetable is not None else group_bills(prepared, forecaster)
    table = _table(f"{file.name} in {prepared.folder.path}", "cells", "done", "begun", "to do")
    bills = _table("predicted bill of each fit (executed FLOPs)", "FLOPs", "for")
    tuning = _table("tuning in each cell, before its fit", "trials", "fits", "predicted FLOPs", "")
    for group in groups:
        row = (group.point, group.cells[0].method, budget_text(group.budget) if group.budget else "none")
        left = len(group.left)
        counts = (len(group.cells), len(group.cells) - left, group.begun, left - group.begun)
        table.add_row(*row, *map(str, counts))
        if group.uses_triples:
            bills.add_row(*row, _number(group.flops), group.reach)
        if (bill := group.tuning) is not None:
            note = "" if bill.flops is None or bill.exact else "an estimate"
            tuning.add_row(*row, str(bill.trials), str(bill.fits), _number(bill.flops), note)
    console.print(table)
    if bills.rows:
        console.print(bills)
    if timetable is None:
        for line in _previews(prepared, forecaster):
            console.print(line, markup=False)
    if tuning.rows:
        how = file.tune
        console.print(tuning)
        console.print(
            f"tuning: {how.search}, scored by {how.score} on {how.validation:.3g} of each budget's prompts; predicted "
            "are the trials' fits, with the variant's own values for those that are not known yet; scoring is extra"
        )
    todo = len(failures) - len(prepared.copied)
    console.print(f"cells: {len(prepared.plan.cells)}, of which {todo} to do{reused_text(prepared)}")
    console.print(f"triples: {len(prepared.checked.triples)} in {file.triples.path}")
    budgets = [f"{', '.join(map(str, file.budgets))} triples"] if file.budgets else []
    budgets += [budget_text(flops_budget(flops)) for flops in file.flops_budgets]
    console.print(f"budgets: {', '.join(budgets)}, {file.seeds} seeds")
    for name, count in prepared.checked.prompts.items():
        console.print(f"benchmark {name}: {count} prompts a cell")
    first, second, execution = prepared.suite.judge, prepared.suite.second_judge, file.execution
    console.print(f"judge: {first.label if first else 'none'}")
    if second is not None:
        console.print(f"second judge: {second.label} on {', '.join(prepared.suite.judged_twice)}")
    for judge in prepared.suite.judges.values():
        for warning in judge.at(prepared.folder.judging).warnings:
            console.print(warning, markup=False)
    if timetable is not None:
        print_timetable(timetable, console)
        return
    console.print(f"device: {execution.device}, {execution.workers} workers with {execution.threads} threads each")
    fits = sum(len(group.left) for group in groups if group.uses_triples)
    flops, unknown = 0.0, 0
    for group in groups:
        parts = [group.flops, *([group.tuning.flops] if group.tuning else [])] if group.uses_triples else []
        flops += len(group.left) * sum(part for part in parts if part is not None)
        unknown += len(group.left) * (None in parts)
    for line in _outlook(prepared, forecaster, todo, fits, flops, unknown):
        console.print(line, markup=False)


def plan_json(prepared: "Prepared", timetable: "Timetable | None") -> dict[str, Any]:
    """The plan for programs: cells by variant and budget, predicted bills, and the forecast where there is one."""
    from harness.experiment.bills import group_bills
    from harness.experiment.forecast import Forecaster

    file = prepared.suite.file
    forecaster = Forecaster(file.base, device=file.execution.device)
    groups = timetable.groups if timetable is not None else group_bills(prepared, forecaster)
    found: dict[str, Any] = {
        "name": prepared.plan.name,
        "folder": str(prepared.folder.path),
        "cells": len(prepared.plan.cells),
        "to_do": len(prepared.failures) - len(prepared.copied),
        "to_copy": len(prepared.copied),
        "to_copy_in_part": len(prepared.reused) - len(prepared.copied),
        "triples": len(prepared.checked.triples),
        "benchmarks": {name: {"prompts": count} for name, count in prepared.checked.prompts.items()},
        "judges": {key: judge.label for key, judge in prepared.suite.judges.items()},
        "notes": list(prepared.checked.notes),
        "groups": [
            {
                "variant": group.point,
                "method": group.cells[0].method,
                "budget": group.budget,
                "cells": [cell.name for cell in group.cells],
                "to_do": [cell.name for cell in group.left],
                "begun": group.begun,
                "fit_flops": group.flops,
                "reach": group.reach or None,
                "tuning": group.tuning and asdict(group.tuning),
            }
            for group in groups
        ],
    }
    if timetable is not None:
        found["forecast"] = timetable_json(timetable)
    return found


def _outlook(
    prepared: "Prepared", forecaster: "Forecaster", cells: int, fits: int, flops: float, unknown: int
) -> Iterator[str]:
    """Estimates of what ``cells`` and the ``fits`` among them may take; ``unknown`` of those predict no ``flops``."""
    import torch

    from harness.experiment.outlook import asked, disk, product_rate
    from harness.experiment.room import Room

    if not cells:
        return
    file, suite = prepared.suite.file, prepared.suite
    room, rates, execution = Room.of(file.base), forecaster.rates, file.execution
    found = {name: asked(benchmark, room, rates) for name, benchmark in suite.benchmarks.items()}
    known = {name: one for name, one in found.items() if one is not None}
    answering = cells * sum(one.flops for one in known.values())
    answers, tokens = (cells * sum(getattr(one, key) for one in known.values()) for key in ("answers", "tokens"))
    yield f"answers: {answers:,} of at most {tokens:,} new tokens; with scores of given answers {answering:.3g} FLOPs"
    before = torch.get_num_threads()
    torch.set_num_threads(execution.threads)
    width, dtype = rates.model.config.get_text_config().hidden_size, getattr(torch, file.base.dtype)
    rate = product_rate(width, dtype=dtype, device=execution.device) * execution.workers
    torch.set_num_threads(before)
    without = [name for name, one in found.items() if one is None]
    left_out = [f"{unknown} fits without a prediction"] * bool(unknown) + without + ["judges"] * bool(suite.judges)
    whole, of_fits = duration((flops + answering) / rate), duration(flops / rate)
    missing = f"; not counted: {', '.join(left_out)}" if left_out else ""
    yield (
        f"time, an estimate: at least {whole}, {of_fits} of it for fits, if all went as fast as matrix products of "
        f"the model's width here ({rate / 1e9:.3g} GFLOP/s now); small models and decoding are much slower{missing}"
    )
    size = sum(p.numel() * p.element_size() for p in rates.model.parameters())
    most, free = disk(prepared.folder.path, fits=fits, weights=size, asked_by=known, cells=cells)
    yield (
        f"disk, an estimate: at most {most / 1e6:,.0f} MB, if every fit keeps all weights (adapters take far "
        f"less); free there: {free / 1e6:,.0f} MB"
    )
    for key, judge in suite.judges.items():
        yield _asked_of(
            key, judge, cells, [one for n, one in known.items() if key == "judge" or n in suite.judged_twice]
        )


def judge_lines(prepared: "Prepared", cells: int, judged: Collection[str]) -> Iterator[str]:
    """What the judge is asked about the benchmarks ``judged`` in so many ``cells``, and what that may cost."""
    from harness.experiment.forecast import Forecaster
    from harness.experiment.outlook import asked
    from harness.experiment.room import Room

    base, suite = prepared.suite.file.base, prepared.suite
    room, rates = Room.of(base), Forecaster(base).rates
    found = {name: asked(suite.benchmarks[name], room, rates) for name in judged}
    assert suite.judge is not None
    yield _asked_of("judge", suite.judge, cells, [one for one in found.values() if one is not None])
    if unknown := [name for name, one in found.items() if one is None]:
        yield f"not counted, because they do not say what they ask: {', '.join(unknown)}"


def _asked_of(key: str, judge: "Judge", cells: int, asked: "Sequence[Asked]") -> str:
    from harness.experiment.outlook import most_money

    verdicts, read = cells * sum(one.verdicts for one in asked), cells * sum(one.judged_tokens for one in asked)
    money = most_money(judge, verdicts, read)
    price = "" if money is None else f", at most {money:.2f} by its prices, if all are as long as they may be"
    return f"{key.replace('_', ' ')}: {verdicts:,} verdicts{price}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("variant", "method", "budget"):
        table.add_column(column, no_wrap=True, justify="right" if column == "budget" else "left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _number(flops: float | None) -> str:
    return "-" if flops is None else f"{flops:.4g}"


def _previews(prepared: "Prepared", forecaster: "Forecaster") -> Iterator[str]:
    """What methods can measure on the first triples of the largest budget before any fit; loads the base for it alone.

    A line for each figure and each value of it, with the variants that have it.
    """
    from harness.experiment.plan import cell_triples
    from harness.model.aligned import AlignedModel
    from harness.quiet import without_progress_bars

    without_progress_bars()
    file, measured, base = prepared.suite.file, {}, None
    lines: dict[str, list[str]] = {}
    for cell in prepared.plan.in_table_order:
        if not cell.uses_triples or cell.sweep or cell.seed or cell.budget != prepared.plan.budgets[-1]:
            continue
        triples = cell_triples(prepared.suite, cell, prepared.checked.triples)
        method = prepared.suite.method_of(cell, prepared.folder.path)
        preview = forecaster.preview(method, triples)
        if preview is None:
            continue
        if preview.flops > PREVIEW_FLOPS:
            text = f"what a fit prints of the triples was not measured, it takes {preview.flops:.3g} FLOPs"
            lines.setdefault(text, []).append(cell.variant)
            continue
        if preview.subject not in measured:
            base = base or AlignedModel.from_base(file.base, device=file.execution.device)
            measured[preview.subject] = preview.measure(base)
        for figure, value in measured[preview.subject].items():
            text = f"{figure} {value:.3g} on {len(triples.triples)} triples ({method.diagnostics[figure]})"
            lines.setdefault(text, []).append(cell.variant)
    return (f"{', '.join(variants)}: {text}" for text, variants in lines.items())


def reused_text(prepared: "Prepared") -> str:
    """What a run says of the cells that it takes from others."""
    whole = len(prepared.copied)
    begun = len(prepared.reused) - whole
    text = f", {begun} of them to copy from runs that lack benchmarks" if begun else ""
    return text + (f", {whole} to copy from other runs" if whole else "")
