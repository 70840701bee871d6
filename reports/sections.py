"""The report's tables of results as Markdown, made from typed rows; those of costs are in `cost_sections`."""

from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, TypeVar

from harness import markdown as md
from harness.benchmark import Metric
from harness.measure.agreement import STATISTICS
from harness.run_folder.plan import BudgetName, budget_order
from reports.answers import Answer, Prompt
from reports.comparison import Comparison, choice_metrics, constant_metrics, headline_metrics
from reports.costs import flops_text
from reports.findings import Drop, side_of
from reports.run import Run
from reports.tables import NAN, Agreed, Diagnostic, DifferenceRow, Failure, Group, Score, SecondMean, Table

R = TypeVar("R")
Columns = Mapping[str, Callable[[R], str]]
"""Header -> the cell of a row, as Markdown."""
ROWS = 24
"""A table of what is also in a CSV file shows this many rows at most."""
NAMED = 6
"""More variants than this are counted, and marked in the tables."""
LENGTH = 200
"""Characters of a prompt or answer."""
_ARROWS = {"better": " ↑", "worse": " ↓", "undecided": "", "untested": ""}
_UNITLESS = ("pearson", "spearman", "kappa", "kendall")


def leaderboard(run: Run, table: Table[Comparison], differences: Table[DifferenceRow], drops: list[Drop]) -> str:
    """Variants x what they score, keep and cost at the largest budget; the best means of a column are bold."""
    varying, choices = _varying(run, headline_metrics(run)), _varying(run, choice_metrics(run))
    budget = run.plan.budgets[-1]
    rows = table.where(budget=budget)
    best = {name: _best(run.metrics[name], [row.scores[name].mean for row in rows]) for name in [*varying, *choices]}
    kept = {row.variant: _mean_of([row.scores[name].mean for name in choices]) for row in rows}
    most = _best(run.metrics[choices[0]], list(kept.values())) if choices else NAN
    uses = {variant.name: variant.uses_triples for variant in run.plan.variants}
    marks = _Marks(run, differences, drops)

    def variant(row: Comparison) -> str:
        missing = f" ({row.n_seeds} of {run.plan.seeds} seeds)" if row.n_seeds < run.plan.seeds else ""
        return label_of(run, row.variant) + missing

    def score(name: str) -> Callable[[Comparison], str]:
        return lambda row: _score(row.scores[name], run.metrics[name], best[name]) + marks(row, name)

    def choice(row: Comparison) -> str:
        if len(choices) == 1:
            return score(choices[0])(row)
        found = dict.fromkeys(mark for name in choices for mark in marks(row, name).split())
        return " ".join([_mean(kept[row.variant], run.metrics[choices[0]], most), *found])

    columns: dict[str, Callable[[Comparison], str]] = {
        "variant": variant,
        "triples": lambda row: md.budget(budget) if uses[row.variant] else "none",
        **{_title(run, name): score(name) for name in varying},
    }
    if choices:
        of = _title(run, choices[0]) if len(choices) == 1 else f"mean of {len(choices)} tasks"
        columns[f"multiple choice: {of}"] = choice
    columns["fit: executed FLOPs"] = lambda row: flops_text(row.cost)
    if any(row.cost.tuning_flops > 0 for row in rows):
        columns["tuning: FLOPs"] = lambda row: md.flops(row.cost.tuning_flops)
    columns["fit: seconds"] = lambda row: md.number(row.cost.fit_seconds)
    return as_table(rows, columns)


def other_budgets(run: Run, table: Table[Comparison], differences: Table[DifferenceRow], drops: list[Drop]) -> str:
    """Variants that use triples x their means at all budgets but the largest, separated by slashes, and FLOPs."""
    budgets, marks = run.plan.budgets[:-1], _Marks(run, differences, drops)
    found = {(row.variant, row.budget): row for row in table}

    def means(name: str) -> Callable[[str], str]:
        def entry(row: Comparison) -> str:
            return md.number(row.scores[name].mean, run.metrics[name].digits) + marks(row, name)

        return lambda variant: " / ".join(entry(found[variant, budget]) for budget in budgets)

    columns: Columns[str] = {
        "variant": lambda variant: label_of(run, variant),
        **{_title(run, name): means(name) for name in _varying(run, list(run.metrics))},
        "fit: executed FLOPs": lambda variant: " / ".join(
            flops_text(found[variant, budget].cost) for budget in budgets
        ),
    }
    shown = [variant.name for variant in run.plan.variants if variant.uses_triples]
    return as_table(shown, columns) if budgets and shown else ""


def counts(run: Run, table: Table[Comparison]) -> str:
    """How many records a mean of each metric rests on at the largest budget: ``MT-Bench 480; ...``."""
    found = {
        name: {row.scores[name].n for row in table.where(budget=run.plan.budgets[-1])} - {0} for name in run.metrics
    }
    spans = {name: sorted({min(ns), max(ns)}) for name, ns in found.items() if ns}
    return "; ".join(f"{_title(run, name)} {' to '.join(map(str, span))}" for name, span in spans.items())


def score_of(table: Table[Comparison], variant: str, metric: Metric, budget: BudgetName) -> str:
    """``mean [low, high]`` of one variant on one metric at ``budget``."""
    (row,) = table.where(variant=variant, budget=budget)
    return _score(row.scores[metric.name], metric)


def moved_to(
    table: Table[Comparison], differences: Table[DifferenceRow], variant: str, metric: Metric, budget: BudgetName
) -> str:
    """``mean (difference [low, high])`` of a variant that differs from the baseline."""
    (row,) = table.where(variant=variant, budget=budget)
    (moved,) = differences.where(variant=variant, budget=budget, metric=metric.name)
    difference = f"{md.signed(moved.difference, metric.digits)} {md.interval(moved.low, moved.high, metric.digits)}"
    return f"{md.number(row.scores[metric.name].mean, metric.digits)} ({difference})"


def difference_table(run: Run, differences: Table[DifferenceRow]) -> str:
    """Variants x metrics at the largest budget, ``difference [low, high]``, bold where significant.

    The last row is how large a difference would have to be to be seen, from the least noisy comparison of a column to
    the noisiest.
    """
    at = differences.where(budget=run.plan.budgets[-1])
    names = [name for name in run.metrics if any(row.metric == name and row.varies for row in at)]
    cells = {(row.variant, row.metric): _difference(row, run.metrics[row.metric].digits) for row in at}
    rows = [
        [label_of(run, variant), *(cells.get((variant, name), md.EMPTY) for name in names)]
        for variant in dict.fromkeys(row.variant for row in at)
    ]
    seen = [_seen(run.metrics[name], [row.detectable for row in at if row.metric == name]) for name in names]
    rows.append(["*would have been seen*", *seen])
    return md.table(["variant", *(_title(run, name) for name in names)], rows) if names else ""


def _seen(metric: Metric, sizes: list[float]) -> str:
    """``0.75 to 0.92``; a size that the metric's scale does not have cannot be seen."""
    least, most = metric.scale
    known = sorted(size for size in sizes if size == size)
    possible = [md.number(size, metric.digits) for size in known if size <= most - least]
    if not possible:
        return "none" if known else md.EMPTY
    if len(possible) < len(known):
        return f"{possible[0]} or more"
    return " to ".join(dict.fromkeys((possible[0], possible[-1])))


def leaders(run: Run, table: Table[Comparison], pairs: Table[DifferenceRow]) -> list[str]:
    """Per headline metric that varies: whose mean is best at the largest budget, and who cannot be told from it."""
    rows, found = table.where(budget=run.plan.budgets[-1]), []
    for name in _varying(run, headline_metrics(run)):
        metric, means = run.metrics[name], {row.variant: row.scores[name].mean for row in rows}
        first = [variant for variant, mean in means.items() if mean == _best(metric, list(means.values()))]
        if not first:
            continue
        apart = {
            (row.variant, row.against) for row in pairs.where(budget=rows[0].budget, metric=name) if row.significant
        }
        near = [v for v in means if v not in first and not {(v, first[0]), (first[0], v)} & apart]
        who = f"significantly better than {len(means) - len(first) - len(near)} of {len(means) - 1}"
        others = f"; not told from {named(near, run)}" if near else ""
        found.append(f"{_title(run, name)}: {label_of(run, first[0])} has the best mean, {who}{others}.")
    return found


def named(variants: list[str], run: Run) -> str:
    """Their labels, which may hold commas; how many they are, where they are many."""
    if len(variants) > NAMED:
        return f"{len(variants)} of {len(run.plan.labels) - 1} variants"
    return "; ".join(label_of(run, variant) for variant in variants)


def _difference(row: DifferenceRow, digits: int) -> str:
    """Pairs are counted only where some items had none."""
    if not row.varies:
        return "no item differs"
    pairs = f" ({row.n} pairs, {row.unpaired} unpaired)" if row.unpaired else ""
    difference = _bold(md.signed(row.difference, digits), row.significant)
    return f"{difference} {md.interval(row.low, row.high, digits)}{pairs}"


def breakdown_table(run: Run, tables: Iterable[Table[Group]], name: str) -> str:
    """Variants x values of every key for one metric at the largest budget: means, the best of a column bold."""
    metric, cells = run.metrics[name], {}
    for table in tables:
        key = table.columns[3]  # what the groups are by
        for row in table.where(metric=name, budget=run.plan.budgets[-1]):
            heading = f"{key} {row.value}" if isinstance(row.value, int) else str(row.value)
            cells.setdefault(heading, {})[row.variant] = row.score
    best = {heading: _best(metric, [score.mean for score in found.values()]) for heading, found in cells.items()}

    def mean(heading: str) -> Callable[[str], str]:
        found = cells[heading]
        return lambda variant: _mean(found[variant].mean, metric, best[heading]) if variant in found else md.EMPTY

    columns: Columns[str] = {"variant": lambda variant: label_of(run, variant)}
    columns = {**columns, **{md.escape(heading): mean(heading) for heading in cells}}
    measured = {variant for found in cells.values() for variant in found}
    return as_table([variant for variant in run.plan.labels if variant in measured], columns) if cells else ""


def sweep_table(run: Run, sweeps: Table[Comparison]) -> str:
    """The rows of the largest budget (a run that grew has older ones too); empty when there are none."""
    table = [row for row in sweeps if row.budget in (0, run.plan.budgets[-1])]
    keys = [key for key in (table[0].sweep if table else ()) if any(row.sweep[key] is not None for row in table)]
    shown = {key: _swept_values(row.sweep[key] for row in sweeps) for key in keys}
    names = [name for name in _varying(run, list(run.metrics)) if any(row.scores[name].n for row in table)]
    rows = [
        [label_of(run, row.variant), md.budget(row.budget)]
        + [shown[key](row.sweep[key]) for key in keys]
        + [_score(row.scores[name], run.metrics[name]) for name in names]
        for row in table
    ]
    headers = ["variant", "triples", *map(md.escape, keys), *(_title(run, name) for name in names)]
    return md.table(headers, rows[:ROWS]) if table else ""


def drop_table(run: Run, drops: list[Drop]) -> str:
    columns: Columns[Drop] = {
        "variant": lambda drop: label_of(run, drop.variant),
        "triples": lambda drop: md.budget(drop.budget),
        "task": lambda drop: md.escape(drop.metric),
        "accuracy": lambda drop: md.number(drop.value),
        "baseline": lambda drop: md.number(drop.baseline),
        "difference in points": lambda drop: f"{drop.value - drop.baseline:+.1f}",
    }
    return as_table(drops, columns)


def failure_table(failures: Table[Failure]) -> str:
    columns: Columns[Failure] = {
        "cell": lambda row: f"`{row.cell}`",
        "metric": lambda row: md.escape(row.metric),
        "item": lambda row: md.escape(row.item),
        "reason": lambda row: md.escape(row.reason),
    }
    return as_table(failures[:ROWS], columns, 4)


def answer_lines(run: Run, prompt: Prompt, compared: Table[Comparison]) -> list[str]:
    """The beginnings of the baseline's answer and of that of the variant with the best mean of the prompt's metric."""
    metric, labels = prompt.metric, list(run.plan.labels)
    means = {row.variant: row.scores[metric.name].mean for row in compared.where(budget=run.plan.budgets[-1])}
    best = _best(metric, list(means.values()))
    named = dict.fromkeys([run.plan.baseline, *(variant for variant in labels if means[variant] == best)])
    return [_answer(prompt.answers[labels.index(variant)], metric) for variant in list(named)[:2]]


def _answer(answer: Answer, metric: Metric) -> str:
    text = "*(empty)*" if answer.text == "" else beginning(answer.text or "")
    note = f" *({md.escape(answer.note)})*" if answer.note else ""
    return f"{md.escape(answer.label)} ({md.number(answer.value, metric.digits)}): {text}{note}"


def beginning(text: str) -> str:
    return md.escape(text if len(text) <= LENGTH else f"{text[:LENGTH]} […]")


def diagnostic_table(run: Run, diagnostics: Table[Diagnostic]) -> str:
    """Each variant's figures at its largest budget on the first benchmark that has any, with the methods' legend."""
    means: dict[str, dict[str, dict[str, str]]] = {}
    for row in at_largest_budget(diagnostics):
        place, _, figure = row.diagnostic.rpartition(".")
        means.setdefault(place, {}).setdefault(row.variant, {})[figure] = f"{row.mean:.3g}"
    place, found = next(iter(means.items()))
    figures = list(dict.fromkeys(name for values in found.values() for name in values))
    rows = [
        [label_of(run, variant), *(values.get(name, md.EMPTY) for name in figures)] for variant, values in found.items()
    ]
    headers = [f"variant, on {place}" if place else "variant", *figures]
    return f"{md.table(list(map(md.escape, headers)), cut(rows))}\n\n{_legend(figures, run.plan.diagnostics)}"


def agreement_table(run: Run, agreements: Table[Agreed]) -> str:
    """The figures as a table, and what each of them is."""

    def value(row: Agreed) -> str:
        if row.statistic is None or not row.n:
            return "no answer was judged by both"
        digits = 2 if row.statistic.startswith((*_UNITLESS, "mean")) else 1
        return f"{md.number(row.value, digits)} {md.interval(row.low, row.high, digits)}"

    columns: Columns[Agreed] = {
        "metric": lambda row: _title(run, row.metric),
        "figure": lambda row: f"`{row.statistic}`" if row.n else md.EMPTY,
        "value": value,
        "n": lambda row: str(row.n),
        "failed (first, second judge)": lambda row: f"{row.failed_first}, {row.failed_second}",
    }
    shown = {row.statistic for row in agreements}
    return (
        f"{as_table(agreements, columns, 2)}\n\n{_legend([name for name in STATISTICS if name in shown], STATISTICS)}"
    )


def judges_means(run: Run, comparison: Table[Comparison], means: Table[SecondMean], name: str) -> str:
    """Each judge's means of one metric at the largest budget, a row a judge: no row mixes two."""
    budget, metric = run.plan.budgets[-1], run.metrics[name]
    first = {row.variant: row.scores[name] for row in comparison.where(budget=budget)}
    second = {row.variant: row.score for row in means.where(budget=budget, metric=name)}
    judges = ((run.environment.judge, first), (run.environment.second_judge, second))
    rows = [
        [md.code(judge and judge.label)]
        + [_score(scores[v], metric) if v in scores else md.EMPTY for v in run.plan.labels]
        for judge, scores in judges
    ]
    return md.table(["judge", *map(md.escape, run.plan.labels.values())], rows)


def as_table(rows: Iterable[R], columns: Columns[R], text_columns: int = 1, *, short: bool = False) -> str:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return md.table(list(columns), cut(cells) if short else cells, text_columns=text_columns)


def cut(rows: list[list[str]]) -> list[list[str]]:
    """The first rows of a table that is whole in its file, and a last one that says how many more are there."""
    return (
        rows
        if len(rows) <= ROWS
        else [*rows[:ROWS], [f"*{len(rows) - ROWS} more in the file*", *[""] * (len(rows[0]) - 1)]]
    )


def _legend(names: Iterable[str], legends: Mapping[str, str]) -> str:
    return "; ".join(f"`{name}`: {legends[name]}" for name in names if name in legends)


def at_largest_budget(rows: Iterable[Any]) -> list[Any]:
    """Of each variant the rows at its largest budget; rows have a ``variant`` and a ``budget``."""
    largest: dict[str, BudgetName] = {}
    for row in rows:
        largest[row.variant] = max(row.budget, largest.get(row.variant, row.budget), key=budget_order)
    return [row for row in rows if row.budget == largest[row.variant]]


class _Marks:
    """What stands behind a mean: an arrow where it is significantly better or worse, a sign where much was lost."""

    def __init__(self, run: Run, differences: Table[DifferenceRow], drops: list[Drop]) -> None:
        self._run = run
        self._rows = {(row.variant, row.budget, row.metric): row for row in differences}
        self._drops = {(drop.variant, drop.budget, drop.metric) for drop in drops}

    def __call__(self, row: Comparison, metric: str) -> str:
        place = row.variant, row.budget, metric
        return _ARROWS[side_of(self._run, self._rows.get(place))] + " ⚠" * (place in self._drops)


def _varying(run: Run, names: list[str]) -> list[str]:
    """Without those in which everything has the same value."""
    constant = constant_metrics(run)
    return [name for name in names if name not in constant]


def _best(metric: Metric, means: list[float]) -> float:
    """The best of the means that are there; nan where none is, as far as its digits show."""
    known = [mean for mean in means if mean == mean]
    if len({md.number(mean, metric.digits) for mean in known}) < 2:
        return NAN
    return max(known) if metric.higher_is_better else min(known)


def _mean_of(values: list[float]) -> float:
    return sum(values) / len(values) if values else NAN


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _mean(mean: float, metric: Metric, best: float = NAN) -> str:
    """Bold where it is the best as far as its digits show."""
    return _bold(
        md.number(mean, metric.digits), md.number(mean, metric.digits) == md.number(best, metric.digits) != md.EMPTY
    )


def _score(score: Score, metric: Metric, best: float = NAN) -> str:
    """``mean [low, high]``, and how many failed where some did."""
    if not score.n:
        return md.EMPTY + (f" ({score.failed} failed)" if score.failed else "")
    failed = f" ({score.n}, {score.failed} failed)" if score.failed else ""
    return f"{_mean(score.mean, metric, best)} {md.interval(score.low, score.high, metric.digits)}{failed}"


def _title(run: Run, name: str) -> str:
    return md.escape(run.metrics[name].title)


def label_of(run: Run, variant: str) -> str:
    return md.escape(run.plan.labels[variant])


def _swept_values(values: Iterable[Any]) -> Callable[[Any], str]:
    """Writes the values of a column: numbers with a point where one of them has a fraction or is missing."""
    types = {type(value) for value in values}
    pointed = types <= {int, float, NoneType} and types != {int}
    return lambda value: md.EMPTY if value is None else md.escape(float(value) if pointed else value)
