"""Puts the page together: template, styles, scripts, data and answers in one file that asks for nothing else."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from harness import markdown as md
from harness.measure.statistics import SIGNIFICANT
from harness.run_folder.plan import budget_text
from reports import findings
from reports.page import grids, leaderboard, libraries, points
from reports.page.archive import LIMIT, Archive, archive
from reports.page.grids import Grid
from reports.run import Run
from reports.tables import Table
from reports.training import Curves

_MEGA = 1e6


def html_report(
    run: Run,
    found: dict[str, Table[Any]],
    *,
    training: Curves | None = None,
    limit: int = LIMIT,
    served: dict[str, Any] | None = None,
) -> str:
    """The report of ``run`` as one HTML file; ``found`` are its tables by the names of their CSV files, ``training``
    the curves of its trainings.

    ``limit`` is the most characters of packed answers that it holds (see `archive`). With ``served``, which its scripts
    can read, it holds none and asks the server it came from (`reports.view`). ValueError where one of the packages that
    bring the scripts is not installed as it should be.
    """
    budget, compared, differences = run.plan.budgets[-1], found["comparison"], found["differences"]
    answers, drops = None if served else archive(run, limit), findings.drops(run, compared)
    effects = findings.effects(run, compared, differences, budget)
    brought = [libraries.datatables(), libraries.plotly()]
    own = libraries.own("common.js", "page.js", "compare.js", "viewer.js", *(("live.js", "trace.js") if served else ()))
    context = {
        "run": run,
        "plan": run.plan,
        "env": run.environment,
        "budget": budget,
        "short": leaderboard.in_short(run, effects),
        "drops": drops,
        "board": leaderboard.leaderboard(run, compared, differences, drops),
        "breakdowns": {
            title: leaderboard.breakdowns(run, found[title], key)
            for title, key in (("categories", "category"), ("turns", "turn"))
        },
        "grids": _grids(run, found),
        "diagnostics": grids.diagnostic_grids(run, found["diagnostics"]),
        "failures": found["failures"],
        "training": training,
        "archive": answers,
        "served": served,
        "megabytes": answers.size / _MEGA if answers else 0,
        "limit": limit / _MEGA,
        "brought": brought,
        "data": _data(run, found, answers) | ({"served": served} if served else {}),
    }
    return filled("report.html.j2", own, context, served=served is not None)


def filled(template: str, own: libraries.Script, context: dict[str, Any], *, served: bool) -> str:
    """A page of assets/ with our styles, the script ``own``, those ``brought``, and the policy for them; ``data`` of
    the context as JSON in which nothing ends the element that it stands in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reports.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": md.words, "budget": budget_text, "mib": md.bytes_, "base64": _base64}
    text = json.dumps(context["data"], allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    context = context | {
        "data": Markup(text),
        "style": Markup(libraries.own("page.css").text),
        "script": Markup(own.text),
        "policy": policy([*context["brought"], own], served=served),
    }
    return environment.get_template(template).render(context)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _grids(run: Run, found: dict[str, Table[Any]]) -> dict[str, Grid]:
    """The tables that the page shows as they are, without those of no row."""
    shown = {
        "differences": ("All differences to the baseline", ("p", "se")),
        "compute": ("Bills of the fits", ("tuning_flops", "tuning_seconds", "total_params")),
        "stages": ("By stage", ()),
        "operators": ("By operator: first seed, largest budget", ()),
        "tuning": ("Tuning", ("winners",)),
        "trials": ("Trials of the tuning", ()),
        "sweeps": ("Swept points", _costs_of(found)),
        "judging": ("What was asked of judges", ()),
        "agreement": ("Agreement of the two judges", ()),
        "second_judge": ("Means by the second judge", ()),
        "failures": ("Records without a value", ()),
    }
    return {
        name: grids.grid(run, name, found[name], caption, without)
        for name, (caption, without) in shown.items()
        if found.get(name)
    }


def _costs_of(found: dict[str, Table[Any]]) -> tuple[str, ...]:
    """What a table of swept points leaves out: counts, and costs, which are those of one cell."""
    counts = (column for column in found["sweeps"].columns if column.endswith(("_n", "_failed")))
    return ("method", "n_seeds", "train_params", "formula_flops", "paper_flops", "peak_bytes", *counts)


def _data(run: Run, found: dict[str, Table[Any]], answers: Archive | None) -> dict[str, Any]:
    """What the page's scripts read."""
    held = {chunk.name for chunk in answers.cells} if answers else {cell.planned.name for cell in run.cells}
    return points.figure_data(run, found["comparison"]) | {
        "pairs": points.pairs(run, found),
        "cells": [
            {
                "name": cell.planned.name,
                "point": cell.planned.point,
                "label": cell.planned.label,
                "sweep": cell.planned.sweep,
                "budget": budget_text(cell.planned.budget) if cell.planned.uses_triples else None,
                "seed": cell.planned.seed,
                "held": cell.planned.name in held,
            }
            for cell in run.cells
            if cell.done
        ],
        "benchmarks": {metric.name: b.name for b in run.plan.benchmarks for metric in b.metrics},
        "prompts": {name: metric.sample.prompt for name, metric in run.metrics.items() if metric.sample},
        "judges": [judge and judge.label for judge in (run.environment.judge, run.environment.second_judge)],
        "significant": SIGNIFICANT,
    }


def policy(scripts: Iterable[libraries.Script], *, served: bool) -> str:
    """Nothing from anywhere but, for a served page, its server; of scripts those alone that are known by their hash."""
    allowed = " ".join(script.source for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        + "connect-src 'self'; " * served
        + "base-uri 'none'; form-action 'none'"
    )
