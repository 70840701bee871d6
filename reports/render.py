"""Writes the report of a run: report.md, report.html, tables/*.csv and figures/*.png, all or nothing."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import markdown
from harness.names import budget_text
from harness.statistics import REPLICATES
from reports import (
    agreement,
    answers,
    cost_sections,
    costs,
    diagnostic_sections,
    findings,
    judging,
    sections,
    tables,
)
from reports.figures import write_figures
from reports.metrics import metric
from reports.runfolder import Run, read_run

if TYPE_CHECKING:
    import pandas as pd


def write_report(run: Path | Run) -> Path:
    """Make the report of the run folder ``run`` (or of what `read_run` read) and return the path of report.md.

    Everything is written to a folder beside ``report/`` that takes its place when complete, so an error
    leaves an earlier report as it was. Raises ValueError for a folder that is not a run (see `read_run`).
    """
    data = run if isinstance(run, Run) else read_run(run)
    target = data.folder / "report"
    with tempfile.TemporaryDirectory(prefix=".report-", dir=data.folder) as scratch:
        built, replaced = Path(scratch, "report"), Path(scratch, "replaced")
        _build(data, built)
        if target.exists():
            target.rename(replaced)
        built.rename(target)
    return target / "report.md"


def _build(run: Run, folder: Path) -> None:
    frames = {
        "comparison": tables.comparison(run),
        "compute": costs.compute(run),
        "sweeps": tables.sweeps(run),
        "differences": tables.differences(run),
        "categories": tables.breakdown(run, "category"),
        "turns": tables.breakdown(run, "turn"),
        "diagnostics": tables.diagnostics(run),
        "stages": costs.stages(run),
        "operators": costs.operators(run),
        "failures": tables.failures(run),
    }
    if (calls := judging.judging(run)) is not None:
        frames["judging"] = calls
    if run.second_judge is not None:
        frames |= {"agreement": agreement.agreement_table(run), "second_judge": agreement.second_means(run)}
    (folder / "tables").mkdir(parents=True)
    for name, frame in frames.items():
        # 15 digits: every whole number (bytes, parameters) stays whole and no rounding noise shows.
        frame.to_csv(folder / "tables" / f"{name}.csv", index=False, float_format="%.15g")
    figures = write_figures(run, frames["comparison"], folder / "figures")
    text = _markdown(run, frames, figures)
    (folder / "report.md").write_text(text, encoding="utf-8")
    page = markdown.html_page(f"{run.name}: comparison report", text)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _markdown(run: Run, frames: dict[str, "pd.DataFrame"], figures: list[str]) -> str:
    comparison, budget = frames["comparison"], run.budgets[-1]
    drops = findings.drops(run, comparison)
    swept = [column for column in frames["sweeps"] if column not in comparison]
    groups = [
        (key, name, sections.breakdown_table(run, frames[table], key, name))
        for table, key in (("categories", "category"), ("turns", "turn"))
        for name in dict.fromkeys(frames[table]["metric"])
    ]
    context: dict[str, Any] = {
        "run": run,
        "environment": run.environment,
        "budget": budget,
        "findings": findings.findings(run, comparison, budget),
        "best": lambda finding: findings.best(run, comparison, finding, budget),
        "drops": drops,
        "headline": findings.headline_metrics(run),
        "choices": findings.multiple_choice_metrics(run),
        "comparison": lambda names, at: sections.comparison_table(run, comparison, names, at, drops),
        "named": findings.NAMED,
        "score": lambda variant, name: sections.score_of(comparison, variant, name, budget),
        "drop_table": sections.drop_table(run, drops),
        "difference_table": sections.difference_table(run, frames["differences"], budget),
        "stop_table": cost_sections.stop_table(run, frames["compute"]),
        "compute_table": cost_sections.compute_table(run, frames["compute"]),
        "ratio_table": cost_sections.ratio_table(run, frames["compute"]),
        "unjudged": [metric(name).title for name in findings.unjudged_metrics(run)],
        "stage_table": cost_sections.stage_table(run, frames["stages"]),
        "operator_table": cost_sections.operator_table(run, frames["operators"]),
        "sweep_table": sections.sweep_table(run, frames["sweeps"], swept) if swept else None,
        "diagnostic_table": diagnostic_sections.diagnostic_table(run, frames["diagnostics"]),
        "failure_table": sections.failure_table(frames["failures"]),
        "settings_table": sections.settings_table(run),
        "failures_shown": sections.FAILURES_SHOWN,
        "judging_table": judging.judging_table(frames["judging"]) if "judging" in frames else None,
        "agreement": agreement.section(run, frames) if run.second_judge is not None else None,
        "groups": groups,
        "title": lambda name: metric(name).title,
        "prompts": answers.sample_answers(run),
        "answer_table": sections.answer_table,
        "frames": frames,
        "replicates": REPLICATES,
        "figures": figures,
    }
    return _template("report.md.j2").render(context)


def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": markdown.escape,
        "code": markdown.code,
        "words": markdown.words,
        "budget": budget_text,
        "mib": markdown.bytes_,
    }
    return environment.get_template(name)
