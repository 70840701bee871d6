"""Writes the report of a run: report.md, report.html, tables/*.csv and figures/*.png, all or nothing."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import markdown
from harness.compute.bill import PAPER_NOTE
from harness.measure.statistics import REPLICATES
from harness.run_folder.plan import budget_text
from reports import agreement, answers, costs, findings, sections, tables
from reports.agreement import Agreement, SecondMean
from reports.figures import write_figures
from reports.rows import Table
from reports.run import Run, read_run


@dataclass(frozen=True)
class Tables:
    """The tables of a report; each is the CSV file of its name, where it is not None."""

    comparison: Table[tables.Comparison]
    compute: Table[costs.Compute]
    sweeps: Table[tables.Comparison]
    differences: Table[tables.DifferenceRow]
    categories: Table[tables.Group]
    turns: Table[tables.Group]
    diagnostics: Table[tables.Diagnostic]
    stages: Table[costs.Stage]
    operators: Table[costs.Operator]
    failures: Table[tables.Failure]
    judging: Table[costs.Judging] | None
    agreement: Table[Agreement] | None
    second_judge: Table[SecondMean] | None


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
    twice = run.environment.second_judge is not None
    found = Tables(
        comparison=tables.comparison(run),
        compute=costs.compute(run),
        sweeps=tables.sweeps(run),
        differences=tables.differences(run),
        categories=tables.breakdown(run, "category"),
        turns=tables.breakdown(run, "turn"),
        diagnostics=tables.diagnostics(run),
        stages=costs.stages(run),
        operators=costs.operators(run),
        failures=tables.failures(run),
        judging=costs.judging(run),
        agreement=agreement.agreement_table(run) if twice else None,
        second_judge=agreement.second_means(run) if twice else None,
    )
    (folder / "tables").mkdir(parents=True)
    for name, table in vars(found).items():
        if table is not None:
            table.write(folder / "tables" / f"{name}.csv")
    figures = write_figures(run, found.comparison.rows, folder / "figures")
    text = _markdown(run, found, figures)
    (folder / "report.md").write_text(text, encoding="utf-8")
    page = markdown.html_page(f"{run.plan.name}: comparison report", text)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _markdown(run: Run, found: Tables, figures: list[str]) -> str:
    budget, compared = run.plan.budgets[-1], found.comparison
    drops, sides = findings.drops(run, compared), findings.sides(run, compared)
    groups = [
        (key, run.metrics[name].title, sections.breakdown_table(run, table, name))
        for key, table in (("category", found.categories), ("turn", found.turns))
        for name in dict.fromkeys(row.metric for row in table)
    ]
    second = None
    if found.agreement is not None and found.second_judge is not None:
        second = agreement.section(run, compared, found.agreement, found.second_judge)
    context: dict[str, Any] = {
        "run": run,
        "plan": run.plan,
        "env": run.environment,
        "tables": found,
        "budget": budget,
        "findings": findings.findings(run, compared, sides, budget),
        "named": findings.NAMED,
        "drops": drops,
        "headline": findings.headline_metrics(run),
        "choices": findings.choice_metrics(run),
        "unjudged": findings.unjudged_metrics(run),
        "score": lambda variant, metric: sections.score_of(compared, variant, metric, budget),
        "comparison": lambda names, at: sections.comparison_table(run, compared, sides, names, at, drops),
        "drop_table": sections.drop_table(run, drops),
        "difference_table": sections.difference_table(run, found.differences, budget),
        "compute_table": sections.compute_table(run, found.compute),
        "predicted": any(row.predicted_flops == row.predicted_flops for row in found.compute),
        "stop_table": sections.stop_table(run, found.compute),
        "ratio_table": sections.ratio_table(run, found.compute),
        "paper_note": PAPER_NOTE,
        "stage_table": sections.stage_table(run, found.stages),
        "operator_table": sections.operator_table(run, found.operators),
        "sweep_table": sections.sweep_table(run, found.sweeps),
        "diagnostic_table": sections.diagnostic_table(run, found.diagnostics),
        "failure_table": sections.failure_table(found.failures),
        "failures_shown": sections.FAILURES_SHOWN,
        "settings_table": sections.settings_table(run),
        "judging_table": found.judging and sections.judging_table(found.judging),
        "agreement": second,
        "groups": groups,
        "prompts": answers.sample_answers(run),
        "answer_table": sections.answer_table,
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
