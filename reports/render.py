"""Writes the report of a run: report.md, report.html, tables (.csv, .tex), figures (.png, .svg), all or nothing."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from harness import markdown
from harness.compute.bill import PAPER_NOTE
from harness.files import check_can_make, locked
from harness.measure.statistics import SIGNIFICANT
from harness.run_folder.plan import budget_text
from harness.run_folder.sweep import REPORT_LOCK
from reports import comparison, cost_sections, costs, findings, sections, tables, tuning
from reports.answers import Prompt, sample_answers
from reports.figures import write_figures
from reports.latex import write_latex
from reports.page.build import html_report
from reports.run import Run, read_run
from reports.training import write_training_figure

PARTS = ("report.md", "report.html", "tables", "figures")


def write_report(run: Path | Run, out: Path | None = None) -> Path:
    """Make the report of the run folder ``run`` (or of what `read_run` read) and return the path of report.md.

    It is the folder ``out``, by default ``report/`` in the run folder. Everything is written to a folder beside it that
    takes its place when complete, so an error leaves an earlier report as it was. Raises ValueError for a folder that
    is not a run (see `read_run`), and for an ``out`` that is there and is not a report.
    """
    data = run if isinstance(run, Run) else read_run(run)
    target = data.folder / "report"
    if out is not None:
        check_report_folder(out, data.folder)
        target = out
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(data.folder, target), tempfile.TemporaryDirectory(prefix=".report-", dir=target.parent) as scratch:
        built, replaced = Path(scratch, "report"), Path(scratch, "replaced")
        _build(data, built)
        if target.exists():
            target.rename(replaced)
        built.rename(target)
    return target / "report.md"


def _alone(run: Path, target: Path) -> AbstractContextManager[None]:
    """In the run folder: nobody makes another report meanwhile, and no run that starts takes this one's parts away."""
    if target.parent.resolve() != run.resolve():
        return nullcontext()
    return locked(run / REPORT_LOCK, "run folder", busy=None, mend="give --out")


def check_report_folder(folder: Path, run: Path) -> None:
    """Raise ValueError when a report of ``run`` could not become ``folder``, or would take the place of anything but a
    report."""
    check_can_make(folder)
    if (run / "cells").resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(f"--out {str(folder)!r} is among the run's cells; choose another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"--out {str(folder)!r} is a file; a report is a folder")
    if strange := sorted(path.name for path in folder.iterdir() if path.name not in PARTS):
        raise ValueError(f"--out {str(folder)!r} is not a report (it has {strange[0]!r}); choose a new folder")


def tables_of(run: Run) -> dict[str, tables.Table]:
    """Every table of a report by the name of its CSV file; those that would be about nothing are left out."""
    found: dict[str, tables.Table] = {
        "comparison": comparison.comparison(run),
        "compute": costs.compute(run),
        "sweeps": comparison.sweeps(run),
        "differences": tables.differences(run),
        "pairs": tables.pairs(run),
        "categories": tables.breakdown(run, "category"),
        "turns": tables.breakdown(run, "turn"),
        "diagnostics": tables.diagnostics(run),
        "stages": costs.stages(run),
        "operators": costs.operators(run),
        "failures": tables.failures(run),
        "settings": comparison.settings(run),
    }
    if tuned := tuning.tuned(run):
        found |= {"tuning": tuned, "trials": tuning.trials(run)}
    if judging := costs.judging(run):
        found["judging"] = judging
    if run.environment.second_judge is not None:
        found |= {"agreement": tables.agreements(run), "second_judge": tables.second_means(run)}
    return found


def _build(run: Run, folder: Path) -> None:
    found = tables_of(run)
    (folder / "tables").mkdir(parents=True)
    for name, table in found.items():
        table.write(folder / "tables" / f"{name}.csv")
        write_latex(table, folder / "tables" / f"{name}.tex")
    figures = write_figures(run, found["comparison"], folder / "figures")
    training = write_training_figure(run, folder / "figures")
    text = _markdown(run, found, figures, training.about if training else None)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(html_report(run, found, training=training), encoding="utf-8")


def _markdown(run: Run, found: dict[str, tables.Table], figures: list[str], training: str | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown.escape, "code": markdown.code, "words": markdown.words}
    environment.filters |= {"budget": budget_text, "mib": markdown.bytes_}
    environment.filters["label"] = lambda variant, of: sections.label_of(of, variant)
    environment.filters |= {"named": sections.named, "first_of_each": _first_of_each}
    environment.filters["plain"] = lambda value: f"{value:g}"
    budget, compared, differences = run.plan.budgets[-1], found["comparison"], found["differences"]
    context: dict[str, Any] = {
        "run": run,
        "plan": run.plan,
        "env": run.environment,
        "tables": found,
        "sections": sections,
        "cost_sections": cost_sections,
        "suite_baseline": run.suite_baseline,
        "budget": budget,
        "findings": findings.findings(run, compared, differences, budget),
        "verdicts": [(at, findings.effects(run, compared, differences, at)) for at in reversed(run.plan.budgets)],
        "significant": SIGNIFICANT,
        "drops": findings.drops(run, compared),
        "constant": comparison.constant_metrics(run),
        "broken_down": _broken_down(run, found),
        "choices": comparison.choice_metrics(run),
        "unjudged": [m.title for m in run.metrics.values() if m.made_of in ("choices", "loglikelihoods")],
        "predicted": any(row.predicted_flops == row.predicted_flops for row in found["compute"]),
        "paper_note": PAPER_NOTE,
        "prompts": sample_answers(run),
        "figures": figures,
        "training": training,
    }
    return environment.get_template("report.md.j2").render(context)


def _broken_down(run: Run, found: dict[str, tables.Table]) -> list[str]:
    """The metrics with categories or turns, without those in which everything has the same value."""
    metrics = {row.metric for name in ("categories", "turns") for row in found[name]}
    return [name for name in run.metrics if name in metrics and name not in comparison.constant_metrics(run)]


def _first_of_each(prompts: list[Prompt], run: Run) -> list[Prompt]:
    """One of each benchmark, of three benchmarks at most."""
    first = {prompt.metric.name: prompt for prompt in reversed(prompts)}
    return [first[name] for name in run.metrics if name in first][:3]
