"""What ``dspa-bench run --dry-run`` prints: cells and their state, predicted bills, and what all of it may take."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.cli.progress import duration

if TYPE_CHECKING:
    from harness.experiment.forecast import Forecaster
    from harness.experiment.outlook import Asked
    from harness.experiment.run import Prepared
    from harness.judging import Judge
    from harness.run_folder.plan import PlannedCell

PREVIEW_FLOPS = 10**12
"""What the plan measures on triples beforehand may take: some seconds on a CPU."""


def print_plan(prepared: "Prepared", console: Console) -> None:
    """What a run would do: cells by variant and budget with their state, predicted bills, data, questions, machine."""
    from harness.experiment.forecast import Forecaster
    from harness.experiment.tuning import forecast
    from harness.run_folder.plan import budget_text, flops_budget

    file, failures = prepared.suite.file, prepared.failures
    forecaster = Forecaster(file.base, device=file.execution.device)
    table = _table(f"{file.name} in {prepared.folder.path}", "cells", "done", "begun", "to do")
    bills = _table("predicted bill of each fit (executed FLOPs)", "FLOPs", "for")
    tuning = _table("tuning in each cell, before its fit", "trials", "fits", "predicted FLOPs", "")
    fits, todo_flops, unknown = 0, 0.0, 0
    for point, method, budget in dict.fromkeys((c.point, c.method, c.budget) for c in prepared.plan.cells):
        cells = [c for c in prepared.plan.cells if (c.point, c.budget) == (point, budget)]
        left = [cell.name for cell in cells if cell.name in failures]
        begun = sum(prepared.folder.cell(name).path.exists() for name in left)
        counts = (len(cells), len(cells) - len(left), begun, len(left) - begun)
        row = (point, method, budget_text(budget) if budget else "none")
        table.add_row(*row, *map(str, counts))
        if cells[0].uses_triples:
            flops, reach = _predicted(prepared, forecaster, cells[0])
            bills.add_row(*row, _number(flops), reach)
            parts = [flops]
            if prepared.suite.tuned(cells[0]):
                folder, triples = prepared.folder.path, prepared.checked.triples
                trial_fits, flops, exact = forecast(prepared.suite, cells[0], folder, triples, forecaster)
                note = "" if flops is None or exact else "an estimate"
                trials = prepared.suite.variant_of(cells[0]).trials
                tuning.add_row(*row, str(trials), str(trial_fits), _number(flops), note)
                parts.append(flops)
            fits += len(left)
            todo_flops += len(left) * sum(part for part in parts if part is not None)
            unknown += len(left) * (None in parts)
    console.print(table)
    if bills.rows:
        console.print(bills)
    for line in _previews(prepared, forecaster):
        console.print(line, markup=False)
    if tuning.rows:
        how = file.tune
        console.print(tuning)
        console.print(
            f"tuning: {how.search}, scored by {how.score} on {how.validation:.3g} of each budget's prompts; predicted "
            "are the trials' fits, with the variant's own values for those that are not known yet; scoring is extra"
        )
    todo = len(failures) - len(prepared.reused)
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
    console.print(f"device: {execution.device}, {execution.workers} workers with {execution.threads} threads each")
    for line in _outlook(prepared, forecaster, todo, fits, todo_flops, unknown):
        console.print(line, markup=False)


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


def _predicted(prepared: "Prepared", forecaster: "Forecaster", cell: "PlannedCell") -> tuple[float | None, str]:
    """The predicted bill of ``cell`` in FLOPs, and how far over the data it gets where that bill is its budget."""
    from harness.experiment.plan import cell_triples

    triples = cell_triples(prepared.suite, cell, prepared.checked.triples)
    method = prepared.suite.method_of(cell, prepared.folder.path)
    try:
        forecast = forecaster.of(method, triples, cell.flops_limit)
    except ValueError:  # its fit will fail and say so; the other cells may be worth running
        return None, "less than a triple"
    if forecast.flops is None:
        return None, ""
    if cell.flops_limit is None:
        return forecast.flops, ""
    if method.single_pass:
        assert forecast.budget is not None
        return forecast.flops, f"{len(forecast.budget.triples)} of {len(triples.triples)} triples"
    return cell.flops_limit, f"{cell.flops_limit / forecast.flops:.3g} x its epochs"


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
    count = len(prepared.reused)
    return f", {count} to copy from other runs" if count else ""
