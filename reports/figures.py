"""Figures of a run, one panel per metric that varies: quality against executed FLOPs, quality against data.

Every series is named at its end. Those on the Pareto front (nothing at the same or a lower cost is better) have colours
and intervals, the others are grey.
"""

from collections.abc import Callable, Sequence
from math import ceil, floor, isnan, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from harness.benchmark import Metric
from reports.comparison import Comparison, constant_metrics
from reports.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Comparison]

# Okabe and Ito's palette, told apart under every common colour blindness; markers say the same in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00", "#2F93CC", "#7B3FA0", "#8C6D1F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_GREY, _MUTED = "#6B6B6B", "#A8A8A8"
_FEW = 10
"""Labels that a panel of the usual height has room for."""
_FONT = 7.0
_LONGEST = 36
"""Characters of a name that a panel has room for."""
STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and small
    "svg.hashsalt": "dspa-bench",  # the same run gives the same bytes
    "font.family": ["DejaVu Sans", "sans-serif"],
}


class _Point(NamedTuple):
    x: float
    mean: float
    below: float
    above: float


def write_figures(run: Run, table: Rows, folder: Path) -> list[str]:
    """Write ``quality_vs_flops`` and ``quality_vs_data`` to ``folder``, each as .png and .svg; returns the names.

    A metric without a single mean, or with one value everywhere, gets no panel; a run without any other no figure; one
    without numbers of triples for budgets no figure against them. The same run gives the same bytes.
    """
    constant = constant_metrics(run)
    metrics = [
        m
        for m in run.metrics.values()
        if m.name not in constant and any(not isnan(row.scores[m.name].mean) for row in table)
    ]
    if not metrics:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    panels = {"quality_vs_flops": _against_flops}
    if run.plan.triple_budgets:
        panels["quality_vs_data"] = _against_data
    return [name for stem, panel in panels.items() for name in _draw(run, table, metrics, panel, folder, stem)]


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, quality) points that are better than every one of lower or equal cost, by rising cost."""
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * quality > sign * front[-1][1]:
            front.append((cost, quality))
    return front


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in [0, 1] at least ``gap`` apart, in the order of the ``wanted`` ones and as near to them as that allows
    (least squares); less apart where there is no room for that."""
    import numpy as np
    from scipy.optimize import isotonic_regression

    order = np.argsort(wanted, kind="stable")
    gap = min(gap, 1 / max(len(wanted) - 1, 1))
    steps = gap * np.arange(len(wanted))
    places = np.empty(len(wanted))
    rising = isotonic_regression(np.asarray(wanted, float)[order] - steps).x
    places[order] = np.clip(rising, 0, 1 - steps[-1]) + steps
    return places.tolist()


def _draw(
    run: Run, table: Rows, metrics: list[Metric], panel: Callable[..., None], folder: Path, stem: str
) -> list[str]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(len(metrics), 2)
    rows = ceil(len(metrics) / columns)
    height = 3.2 * max(1.0, len(run.plan.labels) / _FEW)
    with rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(6.2 * columns, height * rows), dpi=120, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(metrics) :]:
            axis.set_visible(False)
        for axis, metric in zip(axes, metrics, strict=False):
            axis.set_title(metric.title, fontsize=10, loc="left")
            axis.set_ylabel(metric.unit + ("" if metric.higher_is_better else ", lower is better"), fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#E5E5E5", linewidth=0.7)
            axis.set_axisbelow(True)
            axis.tick_params(labelsize=8)
            panel(axis, run, table, metric)
        return save(figure, folder, stem)


def save(figure: Any, folder: Path, stem: str) -> list[str]:
    """Write ``figure`` as .png and .svg, under `STYLE`; returns their names."""
    figure.savefig(folder / f"{stem}.png", metadata={"Software": "dspa-bench"})
    figure.savefig(folder / f"{stem}.svg", metadata={"Date": None, "Creator": "dspa-bench"})
    return [f"{stem}.png", f"{stem}.svg"]


def _against_flops(axis: "Axes", run: Run, table: Rows, metric: Metric) -> None:
    """Means against executed FLOPs on a log axis; what costs nothing stands at "0", left of the break."""
    shown = [row for row in table if not isnan(row.scores[metric.name].mean) and not isnan(row.cost.executed_flops)]
    paid = [row.cost.executed_flops for row in shown if row.cost.executed_flops]
    free = min(paid) / 10 if paid else 1.0
    series: dict[str, list[_Point]] = {}
    for variant in run.plan.labels:
        found = {row.cost.executed_flops: row for row in shown if row.variant == variant}
        if found:
            series[variant] = [_point(found[cost], metric, cost or free) for cost in sorted(found)]
    axis.set_xscale("log")
    axis.set_xlabel("executed FLOPs of alignment", fontsize=9)
    if paid and len(paid) < len(shown):
        axis.axvline(free * 5, color=_GREY, linewidth=0.8, linestyle=(0, (2, 2)))
        style: dict[str, Any] = {"fontsize": 6, "color": _GREY, "rotation": 90, "verticalalignment": "bottom"}
        axis.text(free * 5.5, 0.02, "axis break", transform=axis.get_xaxis_transform(), **style)
        decades = range(ceil(log10(min(paid) * 0.5)), floor(log10(max(paid) * 2)) + 1)
        axis.set_xlim(free / 2, max(paid) * 2)
        axis.set_xticks([free, *(10.0**n for n in decades)], ["0", *(f"$10^{{{n}}}$" for n in decades)])
        axis.set_xticks([], minor=True)
    _series(axis, run, table, metric, series)


def _against_data(axis: "Axes", run: Run, table: Rows, metric: Metric) -> None:
    """Means against the number of triples, which are evenly spaced."""
    budgets = run.plan.triple_budgets
    series: dict[str, list[_Point]] = {}
    for variant in run.plan.variants:
        rows = [row for row in table if row.variant == variant.name and row.budget in budgets]
        points = [_point(row, metric, budgets.index(int(row.budget))) for row in rows]
        if found := [point for point in points if not isnan(point.mean)]:
            series[variant.name] = found
    axis.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
    axis.set_xlim(-0.15, len(budgets) - 0.85)
    axis.set_xlabel("preference triples", fontsize=9)
    _series(axis, run, table, metric, series)


def _point(row: Comparison, metric: Metric, x: float) -> _Point:
    """A mean without an interval (nan) is drawn as a bare marker."""
    mean, low, high = row.scores[metric.name][:3]
    return _Point(x, mean, 0.0 if isnan(low) else mean - low, 0.0 if isnan(high) else high - mean)


def _series(axis: "Axes", run: Run, table: Rows, metric: Metric, series: dict[str, list[_Point]]) -> None:
    """All variants, the Pareto set before the others, with the front, the baseline's line and the names."""
    points = [(point.x, point.mean) for found in series.values() for point in found]
    front = pareto_front(points, higher_is_better=metric.higher_is_better) if points else []
    if len(points) > 1:
        steps = [*front, (max(x for x, _ in points), front[-1][1])]
        axis.step(
            [x for x, _ in steps], [y for _, y in steps], where="post", color=_GREY, linewidth=6, alpha=0.18, zorder=1
        )
    _reference(axis, run, table, metric)
    colours: dict[str, str] = {}
    for index, variant in enumerate(run.plan.labels):
        if variant not in series:
            continue
        found, base = series[variant], variant == run.plan.baseline
        leading = any((point.x, point.mean) in front for point in found)
        colours[variant] = "#000000" if base else _COLOURS[index % len(_COLOURS)] if leading else _MUTED
        style: dict[str, Any] = {"color": colours[variant], "zorder": 4 if base else 3 if leading else 2}
        style |= {"marker": "D" if base else _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]}
        x, y = [point.x for point in found], [point.mean for point in found]
        axis.plot(x, y, linewidth=1.4 if leading else 0.8, markersize=5 if leading or base else 3.5, **style)
        if leading:
            bars = [[point.below for point in found], [point.above for point in found]]
            axis.errorbar(x, y, yerr=bars, fmt="none", ecolor=colours[variant], elinewidth=0.9, capsize=2, alpha=0.6)
    _limits(axis, metric)
    _names(axis, run, series, colours)


def _reference(axis: "Axes", run: Run, table: Rows, metric: Metric) -> None:
    """The baseline as a dashed line, its interval as a band; at the largest budget, where it has several."""
    rows = [row for row in table if row.variant == run.plan.baseline and row.budget == run.plan.budgets[-1]]
    score = rows[0].scores[metric.name]
    if isnan(score.mean):
        return
    axis.axhline(score.mean, color=_GREY, linewidth=1.0, linestyle="--", zorder=1)
    if not isnan(score.low):
        axis.axhspan(score.low, score.high, color=_GREY, alpha=0.10, linewidth=0, zorder=0)


def _limits(axis: "Axes", metric: Metric) -> None:
    low, high = axis.get_ylim()
    if high - low < metric.least_span:  # do not blow up differences that are none
        middle = (low + high) / 2
        if not metric.signed:
            middle = max(middle, 0.4 * metric.least_span)  # and show hardly anything below 0
        low, high = middle - metric.least_span / 2, middle + metric.least_span / 2
    axis.set_ylim(low, high)


def _names(axis: "Axes", run: Run, series: dict[str, list[_Point]], colours: dict[str, str]) -> None:
    """Each variant's label right of the panel, joined to its last point and as near to its height as others allow."""
    low, high = axis.get_ylim()
    figure: Any = axis.get_figure(root=True)
    height = axis.get_position(original=True).height * figure.get_figheight() * 72  # points
    ends = {variant: found[-1] for variant, found in series.items()}
    places = spread([(end.mean - low) / (high - low) for end in ends.values()], 1.25 * _FONT / height)
    line: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    for (variant, end), place in zip(ends.items(), places, strict=True):
        muted = colours[variant] == _MUTED
        axis.annotate(
            name if len(name := run.plan.labels[variant]) <= _LONGEST else f"{name[: _LONGEST - 1]}…",
            xy=(end.x, end.mean),
            xytext=(1.03, place),
            textcoords="axes fraction",
            fontsize=_FONT,
            fontweight="normal" if muted else "bold",
            color=_GREY if muted else colours[variant],
            verticalalignment="center",
            annotation_clip=False,
            arrowprops=line | {"color": colours[variant]},
        )
