"""Figures of a run, one panel per metric: quality against executed FLOPs, quality against data."""

from collections.abc import Callable, Sequence
from math import ceil, floor, isnan, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.benchmark import Metric
from reports.comparison import Comparison
from reports.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Comparison]

# Okabe and Ito's palette, told apart under every common colour blindness; markers say the same in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_GREY = "#6B6B6B"


def write_figures(run: Run, table: Rows, folder: Path) -> list[str]:
    """Write ``quality_vs_flops.png`` and ``quality_vs_data.png`` to ``folder``; returns the names written.

    A metric without a single mean gets no panel; a run without any measurement no figure; one without numbers of
    triples for budgets no figure against them.
    """
    metrics = [m for m in run.metrics.values() if any(not isnan(row.scores[m.name].mean) for row in table)]
    if not metrics:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    panels = {"quality_vs_flops.png": _against_flops}
    if run.plan.triple_budgets:
        panels["quality_vs_data.png"] = _against_data
    for name, panel in panels.items():
        _small_multiples(run, table, metrics, panel, folder / name)
    return list(panels)


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, quality) points that are better than every one of lower or equal cost, by rising cost."""
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * quality > sign * front[-1][1]:
            front.append((cost, quality))
    return front


def _small_multiples(run: Run, table: Rows, metrics: list[Metric], panel: Callable[..., None], path: Path) -> None:
    from matplotlib.figure import Figure

    columns = min(len(metrics), 3)
    rows = ceil(len(metrics) / columns)
    handles: dict[str, Any] = {}
    # The legend is as wide as the figure, so a figure of one panel must still be wide enough to hold it.
    figure = Figure(figsize=(max(4.1 * columns, 6.0), 3.3 * rows + 0.9), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(metrics) :]:
        axis.set_visible(False)
    for axis, metric in zip(axes, metrics, strict=False):
        panel(axis, run, table, metric)
        _dress(axis, metric)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(len(handles), 2 + columns), "frameon": False}
    figure.legend(handles.values(), handles.keys(), **place)
    figure.savefig(path, metadata={"Software": "dspa-bench"})


def _against_flops(axis: "Axes", run: Run, table: Rows, metric: Metric) -> None:
    """Means against executed FLOPs on a log axis; what costs nothing stands at "0", left of the break."""
    shown = [row for row in table if not isnan(row.scores[metric.name].mean) and not isnan(row.cost.executed_flops)]
    paid = [row.cost.executed_flops for row in shown if row.cost.executed_flops]
    free = min(paid) / 10 if paid else 1.0
    points, at_zero = [], 0
    _reference(axis, run, table, metric)
    for variant in run.plan.labels:
        found = {row.cost.executed_flops: row for row in shown if row.variant == variant}
        rows = [found[cost] for cost in sorted(found)]
        points += [(row.cost.executed_flops or free, row.scores[metric.name].mean) for row in rows]
        if variant == run.plan.baseline and not any(row.cost.executed_flops for row in rows):
            continue  # its line and band say it all
        x = [row.cost.executed_flops or free * 1.5**at_zero for row in rows]
        at_zero += any(not row.cost.executed_flops for row in rows)
        _series(axis, run, variant, metric, x, rows)
    if len(points) > 1:
        front = pareto_front(points, higher_is_better=metric.higher_is_better)
        front.append((max(x for x, _ in points), front[-1][1]))
        style = {"color": _GREY, "linewidth": 6, "alpha": 0.18, "zorder": 1, "label": "Pareto front"}
        axis.step([x for x, _ in front], [y for _, y in front], where="post", **style)
    axis.set_xscale("log")
    axis.set_xlabel("executed FLOPs of alignment", fontsize=9)
    if paid and len(paid) < len(shown):
        axis.axvline(free * 5, color=_GREY, linewidth=0.8, linestyle=(0, (2, 2)))
        decades = range(ceil(log10(min(paid) * 0.5)), floor(log10(max(paid) * 2)) + 1)
        axis.set_xlim(free / 2, max(paid) * 2)
        axis.set_xticks([free, *(10.0**n for n in decades)], ["0", *(f"$10^{{{n}}}$" for n in decades)])
        axis.set_xticks([], minor=True)


def _against_data(axis: "Axes", run: Run, table: Rows, metric: Metric) -> None:
    """Means with intervals against the number of triples, which are evenly spaced; the baseline is a line, and has
    points where it depends on the triples."""
    variants = [v.name for v in run.plan.variants if v.name != run.plan.baseline or v.uses_triples]
    _reference(axis, run, table, metric)
    for index, variant in enumerate(variants):
        at = run.plan.triple_budgets
        rows = [r for r in table if r.variant == variant and r.budget in at and not isnan(r.scores[metric.name].mean)]
        shift = 0.36 * (index / max(len(variants) - 1, 1) - 0.5)  # side by side: intervals stay apart
        x = [at.index(int(row.budget)) + shift for row in rows]
        _series(axis, run, variant, metric, x, rows)
    axis.set_xticks(range(len(run.plan.triple_budgets)), [str(budget) for budget in run.plan.triple_budgets])
    axis.set_xlim(-0.45, len(run.plan.triple_budgets) - 0.55)
    axis.set_xlabel("preference triples", fontsize=9)


def _series(axis: "Axes", run: Run, variant: str, metric: Metric, x: list[float], rows: Rows) -> None:
    if not rows:
        return
    index = list(run.plan.labels).index(variant)
    rounds, colour = divmod(index, len(_COLOURS))
    # After one round of colours the markers move on by one and the line changes, so that no two look alike.
    marker, line = _MARKERS[(index + rounds) % len(_MARKERS)], _LINES[rounds % len(_LINES)]
    style: dict[str, Any] = {"color": _COLOURS[colour], "marker": marker, "linestyle": line, "markersize": 5}
    style |= {"linewidth": 1.2, "elinewidth": 1, "capsize": 2, "zorder": 3, "label": run.plan.labels[variant]}
    scores = [row.scores[metric.name] for row in rows]
    # A mean without an interval (nan) is drawn as a bare marker.
    below = [0.0 if isnan(score.low) else score.mean - score.low for score in scores]
    above = [0.0 if isnan(score.high) else score.high - score.mean for score in scores]
    axis.errorbar(x, [score.mean for score in scores], yerr=[below, above], **style)


def _reference(axis: "Axes", run: Run, table: Rows, metric: Metric) -> None:
    """The baseline as a dashed line, its interval as a band; at the largest budget, where it has several."""
    rows = [row for row in table if row.variant == run.plan.baseline and row.budget == run.plan.budgets[-1]]
    score = rows[0].scores[metric.name]
    if isnan(score.mean):
        return
    label = f"{run.plan.labels[run.plan.baseline]} (baseline)"
    axis.axhline(score.mean, color=_GREY, linewidth=1.2, linestyle="--", zorder=2, label=label)
    if not isnan(score.low):
        axis.axhspan(score.low, score.high, color=_GREY, alpha=0.10, linewidth=0, zorder=0)


def _dress(axis: "Axes", metric: Metric) -> None:
    axis.set_title(metric.title, fontsize=10, loc="left")
    axis.set_ylabel(metric.unit + ("" if metric.higher_is_better else ", lower is better"), fontsize=9)
    low, high = axis.get_ylim()
    if high - low < metric.least_span:  # do not blow up differences that are none
        middle = (low + high) / 2
        if not metric.signed:
            middle = max(middle, 0.4 * metric.least_span)  # and show hardly anything below 0
        axis.set_ylim(middle - metric.least_span / 2, middle + metric.least_span / 2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
