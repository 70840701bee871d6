"""reports.render: the finished report as a reader finds it."""

import json
import re
import shutil

import pandas as pd
import pytest
import typer

from harness.benchmark import Metric
from harness.files import write_jsonl
from harness.responder import Completion
from harness.run_folder import Plan, PlannedBenchmark, RunFolder
from reports import tables
from reports.answers import sample_answers
from reports.commands import report
from reports.figures import pareto_front
from reports.render import write_report
from reports.run import read_run
from tests.unit.synthetic_run import PLAN, cell_of, write_run

FILES = {"suite.yaml", "plan.json", "environment.json", "cells", "report"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("render") / "run"
    write_run(folder, failed_cell="dpo__n100__s1", unfinished="static_sae__n300__s2")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report" / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing is most of the time, and not what these tests are about."""
    monkeypatch.setattr("reports.render.write_figures", lambda *_: [])


def test_the_report_has_the_files_of_the_contract_and_leaves_nothing_else_behind(folder):
    report = folder / "report"
    for name in ("report.md", "report.html", "tables/comparison.csv", "tables/compute.csv", "tables/sweeps.csv"):
        assert (report / name).is_file(), name
    for path in report.glob("figures/*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
    assert {path.name for path in folder.iterdir()} - {".report.lock"} == FILES


def test_comparison_csv_reads_back_with_empty_cells_for_what_is_missing(folder):
    frame = pd.read_csv(folder / "report" / "tables" / "comparison.csv")
    assert frame.loc[frame["variant"] == "dpo", "paper_flops"].isna().all()
    assert frame["peak_bytes"].iloc[0] == 902 * 2**20
    assert "nan" not in (folder / "report" / "tables" / "comparison.csv").read_text().lower()


def test_every_link_and_figure_of_the_markdown_exists(folder, text):
    targets = re.findall(r"(?<!\\)\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        assert (folder / "report" / target).is_file(), target


def test_every_table_row_has_as_many_cells_as_its_header(text):
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_the_first_lines_say_what_was_compared_what_came_out_and_who_judged(text):
    opening = text[: text.index("## Quality and cost")]
    assert "6 variants were compared on the same 100 and 300 preference triples, with 3 seeds each" in opening
    assert re.search(
        r"\*\*MT-Bench\*\*.*better: 4 of 5, by .* first DSPA \(strict gate\) 5\.\d\d \(\+1\.\d\d \[", opening
    )
    assert "Its numbers say nothing about real language." in opening
    (line,) = [line for line in opening.splitlines() if line.startswith("- **At 300 triples**")]
    assert "better on some measure and worse on none: Static SAE; DSPA (paper gate); DSPA (strict gate)." in line
    assert "Better on some and worse on others: DPO (LoRA). No difference detected: Prompt." in line


def test_one_table_has_quality_and_cost_with_the_best_mean_of_a_column_in_bold(text):
    section = text[text.index("## Quality and cost") : text.index("## Other budgets")]
    rows = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("| ")}
    assert rows["variant"].startswith("| variant | triples | MT-Bench | AlpacaEval win rate | Safety rate |")
    assert rows["variant"].endswith("| multiple choice: mean of 2 tasks | fit: executed FLOPs | fit: seconds |")
    best = r"\| 300 \| \*\*5\.\d\d\*\* \[\d\.\d\d, \d\.\d\d\] ↑ \| \*\*.* ↑ \| .* \| 1\.00e\+11 \| 2\.0 \|$"
    assert re.search(best, rows["DSPA (strict gate)"])
    assert re.search(r"\| none \| 3\.\d\d \[[^|]*\] \| .* \| 0 \| 2\.0 \|$", rows["Base"])
    assert re.search(r"\| \d\d\.\d ↓ ⚠ \|", rows["DPO (LoRA)"])
    assert "(141, 3 failed)" in rows["DPO (LoRA)"]
    assert "Static SAE (2 of 3 seeds)" in rows
    assert "MT-Bench 96 to 144; AlpacaEval win rate 60 to 90" in section


def test_what_would_have_been_seen_stands_under_the_differences(folder, text):
    section = text[text.index("## Method against method") : text.index("## Categories")]
    rows = {line.split("|")[1].strip(): line.split("|") for line in section.splitlines() if line.startswith("| ")}
    frame = pd.read_csv(folder / "report" / "tables" / "differences.csv").set_index(["budget", "metric"])
    sizes = frame.loc[(300, "mt_bench"), "detectable"]
    expected = f"{sizes.min():.2f} to {sizes.max():.2f}" if sizes.max() <= 9 else f"{sizes.min():.2f} or more"
    assert rows["*would have been seen*"][2].strip() == expected
    assert "no item differs" in rows["Prompt"][4]
    assert "Safety rate" not in section, "no item of any variant differs"


def test_capability_drops_failures_and_the_dirty_tree_are_visible(text):
    assert "⚠ Warning: capability dropped" in text
    assert "⚠ Warning: not everything was measured" in text
    assert "Cell `dpo__n100__s1` failed: ValueError: loss is not finite at step 12" in text
    assert "Cell `static_sae__n300__s2` is not over" in text
    assert "the judge's answer has no rating: 'I cannot \\| rate'" in text
    assert "with uncommitted changes" in text


@pytest.mark.usefixtures("without_figures")
def test_no_warning_stands_in_a_report_that_needs_none(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/*/records/*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [r | {"value": 100.0} if r["metric"].startswith("sandbox") else r for r in records]
        path.write_text("".join(json.dumps(r) + "\n" for r in kept if r["error"] is None))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "⚠ Warning" not in text
    assert "no variant is more than 2 points below the baseline" in text
    assert "None: every cell is done and every record has a value." in text


def test_what_a_model_said_is_escaped_in_the_markdown(text):
    assert "\\<script\\>" in text


def test_the_page_needs_none_of_the_files_beside_it(folder):
    html = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "Leaderboard" in html
    assert "figures/" not in html.split('id="page-data"')[0]


def test_a_few_answers_to_the_same_prompt_stand_next_to_each_other(text):
    section = text[text.index("## First answers") : text.index("## Failures")]
    assert "MT-Bench question 81 (writing), turn 1" in section
    (line,) = [line for line in section.splitlines() if "AlpacaEval instruction 1" in line]
    assert line.index("Base says") < line.index("DSPA (strict gate) says")
    assert "DPO (LoRA) says" not in section, "the baseline's and the best are enough here"


@pytest.mark.usefixtures("without_figures")
def test_a_second_report_replaces_the_first_whole(tmp_path):
    folder = write_run(tmp_path / "run")
    first = write_report(folder).read_text(encoding="utf-8")
    (folder / "report" / "stale.txt").write_text("old")
    assert write_report(folder).read_text(encoding="utf-8") == first
    assert not (folder / "report" / "stale.txt").exists()


@pytest.mark.usefixtures("without_figures")
def test_an_error_leaves_the_earlier_report_as_it_was(folder, text, tmp_path, monkeypatch):
    folder = shutil.copytree(folder, tmp_path / "run")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("reports.render.write_figures", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert (folder / "report" / "report.md").read_text(encoding="utf-8") == text
    assert {path.name for path in folder.iterdir()} - {".report.lock"} == FILES


def test_a_run_without_judge_git_or_any_finished_cell_still_gets_a_report(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/*/cell.json"):
        path.unlink()
    environment = json.loads((folder / "environment.json").read_text())
    environment |= {"judge": None, "git": None, "command": "dspa-bench run `s`.yaml --set a=b|c"}
    (folder / "environment.json").write_text(json.dumps(environment))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "No judge was used" in text
    environment["notes"] = ["The verdicts are those of somebody else.", "Lengths count."]
    (folder / "environment.json").write_text(json.dumps(environment))
    noted = write_report(folder).read_text(encoding="utf-8")
    assert "The suite has no judge. The verdicts are those of somebody else. Lengths count." in noted
    assert "not in a git checkout" in text
    assert "| command | `` dspa-bench run `s`.yaml --set a=b\\|c `` |" in text
    assert not (folder / "report" / "figures").exists()


@pytest.mark.parametrize(
    ("higher_is_better", "expected"), [(True, [(1, 2), (2, 3), (5, 9)]), (False, [(1, 2), (3, 1)])]
)
def test_the_pareto_front_keeps_what_nothing_cheaper_or_equal_beats(higher_is_better, expected):
    points = [(5, 9), (1, 2), (2, 3), (3, 1), (4, 3), (6, 8)]
    front = pareto_front(points, higher_is_better=higher_is_better)
    sign = 1 if higher_is_better else -1
    brute = [p for p in points if not any(q != p and q[0] <= p[0] and sign * q[1] >= sign * p[1] for q in points)]
    assert front == expected == sorted(brute)


@pytest.mark.usefixtures("without_figures")
def test_an_answer_that_is_missing_empty_or_long_says_so(tmp_path):
    folder = write_run(tmp_path / "run")
    for variant, change in (
        ("dspa__n300__s0", {"answer": ""}),
        ("base__n0__s0", {"answer": "x" * 1000}),
        ("prompt__n0__s0", {}),
    ):
        path = folder / "cells" / variant / "records" / "alpaca_eval.jsonl"
        first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
        del first["raw"]["answer"]
        first["raw"] |= change
        if not change:
            first |= {"value": None, "error": "no answer: the context is full"}
        path.write_text("".join(json.dumps(record) + "\n" for record in [first, *rest]))
    text = write_report(folder).read_text(encoding="utf-8")
    assert re.search(r"\*\*→\*\* DSPA \(strict gate\) \([\d.]+\): \*\(empty\)\*", text)
    assert re.search(r"Tell me about animal 0\. \*\*→\*\* Base \([\d.]+\): x{200} \\\[…\\\]", text)
    (prompt,) = [p for p in sample_answers(read_run(folder)) if p.heading == "AlpacaEval instruction 1"]
    assert [a.note for a in prompt.answers if a.label == "Prompt"] == ["no answer: the context is full"]


def test_an_answer_is_looked_up_where_its_record_names_a_key(tmp_path):
    folder = write_run(tmp_path / "run")
    cell = RunFolder(folder).cell("dspa__n300__s0")
    path = cell.path / "records" / "alpaca_eval.jsonl"
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    first["raw"] = {"prompt": "Hello", "reference": "Do it.", "answer_key": "0a1b"}
    write_jsonl(path, [first, *rest])
    cell.answers("alpaca_eval").append({"0a1b": Completion("from the store", (1, 2), 5, 0, True)}, None)
    prompt = next(prompt for prompt in sample_answers(read_run(folder)) if prompt.metric.name == "alpaca_eval")
    texts = {answer.label: answer.text for answer in prompt.answers}
    assert texts["DSPA (strict gate)"] == "from the store"
    assert texts["DPO (LoRA)"] == "DPO (LoRA) says: it is a fox."


def test_a_sample_that_names_what_a_record_does_not_have_is_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    plan = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(plan.replace('"reference": "reference"', '"reference": "gold"'))
    with pytest.raises(ValueError, match="'alpaca_eval': the sample of its metric 'alpaca_eval' names 'gold', which a"):
        sample_answers(read_run(folder))


@pytest.mark.usefixtures("without_figures")
def test_sweeps_of_a_smaller_budget_stay_in_the_csv_only(tmp_path):
    folder = write_run(tmp_path / "run")
    more, plan = cell_of(PLAN.variants[4], 100, 0, {"beta": 7}), Plan.read(folder / "plan.json")
    plan.model_copy(update={"cells": (*plan.cells, more)}).write(folder / "plan.json")
    shutil.copytree(folder / "cells" / "dspa@alpha=1.0__n300__s0", folder / "cells" / more.name)
    text = write_report(folder).read_text(encoding="utf-8")
    section = text[text.index("## Sweeps") : text.index("## Cost")]
    assert section.count("| DSPA (strict gate) |") == 3
    assert "| 300 |" in section
    assert "beta" not in section
    csv = pd.read_csv(folder / "report" / "tables" / "sweeps.csv")
    assert sorted(csv["budget"]) == [100, 300, 300, 300]


@pytest.mark.usefixtures("without_figures")
def test_cells_of_different_commits_are_a_warning(text, tmp_path):
    folder = write_run(tmp_path / "run")
    warning = "the cells come from different commits"
    assert warning not in text
    for path in folder.glob("cells/*/cell.json"):
        commit = "bbbb-dirty" if path.parent.name == "dpo__n300__s0" else "aaaa"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": commit}))
    text = write_report(folder).read_text(encoding="utf-8")
    assert f"**⚠ {warning}**: `aaaa`, `bbbb-dirty` |" in text


@pytest.mark.usefixtures("without_figures")
def test_a_benchmark_that_a_finished_cell_lacks_is_named(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "cells" / "base__n0__s0" / "records" / "safety.jsonl").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert "1 benchmark of finished cells not run." in text
    assert "Cell `base__n0__s0` has no records of safety; rerun the suite" in text


def test_costs_by_the_papers_convention_have_their_ratios_beside_the_measured_ones(tmp_path, without_figures):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/dpo__n*/compute.json"):  # as if it were the other method that has a paper's figure
        bill = json.loads(path.read_text())
        path.write_text(json.dumps(bill | {"paper_flops": 358e12 * bill["n_triples"]}))
    text = write_report(folder).read_text(encoding="utf-8")
    costs = pd.read_csv(folder / "report/tables/compute.csv").set_index(["variant", "budget"])
    dspa, dpo = (costs.loc[(name, 300)] for name in ("dspa_paper", "dpo"))
    (row,) = [line for line in text.splitlines() if re.match(r"\| [^|]* : [^|]* \|", line)]
    executed, formula, paper = (float(cell) for cell in row.split("|")[2:5])
    assert executed == pytest.approx(dpo["executed_flops"] / dspa["executed_flops"], abs=0.051)
    assert formula == pytest.approx(dpo["formula_flops"] / dspa["formula_flops"], abs=0.051)
    assert paper == pytest.approx(dpo["paper_flops"] / dspa["paper_flops"], abs=5e-5)


def test_what_the_suite_sets_is_in_the_report(folder, text):
    assert "derived from the suite's seed 0 " in text
    frame = pd.read_csv(folder / "report/tables/settings.csv").set_index("variant")
    assert list(frame.loc["dspa_paper"])[:5] == ["DSPA (paper gate)", "dspa", "given", "gate", '"paper"']
    assert frame.loc["dpo", "method"] == "dpo"
    assert pd.isna(frame.loc["dpo", "setting"])


def test_a_plug_ins_metric_is_reported_as_it_declares_it(tmp_path, monkeypatch):
    """Its perplexity is no accuracy, and less of it is better."""
    folder = write_run(tmp_path / "run")
    declared = Metric(name="perplexity", title="Perplexity", unit="per token", higher_is_better=False, digits=3)
    outside = PlannedBenchmark(name="outside", files="outside", metrics=(declared,))
    Plan.read(folder / "plan.json").model_copy(update={"benchmarks": (outside,)}).write(folder / "plan.json")
    for path in folder.glob("cells/*/records/alpaca_eval.jsonl"):
        path.with_name("outside.jsonl").write_text(path.read_text().replace('"alpaca_eval"', '"perplexity"'))
    directions = []

    def spy(points, *, higher_is_better):
        directions.append(higher_is_better)
        front = pareto_front(points, higher_is_better=higher_is_better)
        assert front[-1][1] == min(quality for _, quality in points)  # of both figures
        return front

    monkeypatch.setattr("reports.figures.pareto_front", spy)
    text = write_report(folder).read_text(encoding="utf-8")
    assert set(directions) == {False}
    assert re.search(r"\*\*Perplexity\*\* \(per token, lower is better\): .*; better: 0 of 5; worse: [1-4]; no", text)
    assert re.search(r"\| DSPA \(strict gate\) \| 300 \| \d+\.\d{3} [^|]+ ↓ \|", text)
    assert "↑ |" not in text
    assert "**Multiple choice**" not in text
    assert "multiple choice:" not in text
    assert "accuracy" not in text


@pytest.mark.usefixtures("without_figures")
def test_another_baseline_gives_another_report_in_another_folder(tmp_path):
    folder, out = write_run(tmp_path / "run"), tmp_path / "against" / "dpo"
    before = sorted(folder.iterdir())
    text = write_report(read_run(folder).against("dpo"), out).read_text(encoding="utf-8")
    assert sorted(folder.iterdir()) == before
    assert "The baseline is DPO (LoRA) (the suite's is Base)." in text
    assert "`dspa-bench report <run folder> --baseline dpo`" in text
    section = text[text.index("## Method against method") : text.index("## Cost")]
    assert "Variant minus DPO (LoRA) at 300 triples" in section
    compared = pd.read_csv(out / "tables" / "differences.csv").set_index(["variant", "budget", "metric"])
    usual = tables.differences(read_run(folder)).where(variant="dpo", budget=100, metric="mt_bench")
    assert compared.loc[("base", 100, "mt_bench"), "difference"] == pytest.approx(-usual[0].difference)
    assert "dpo" not in compared.index.get_level_values("variant")


def test_significant_differences_are_bold_and_pairs_are_counted_where_some_are_missing(folder, text):
    frame = pd.read_csv(folder / "report" / "tables" / "differences.csv").set_index(["variant", "budget", "metric"])
    section = text[text.index("## Method against method") : text.index("## Categories")]
    header, (line,) = (
        re.findall(rf"^\| {name} \|.*$", section, re.MULTILINE) for name in ("variant", r"DSPA \(strict gate\)")
    )
    assert header == ["| variant | MT-Bench | AlpacaEval win rate | sandbox\\_facts | sandbox\\_scenes |"]
    for cell, metric, digits in zip(line.split("|")[2:4], ("mt_bench", "alpaca_eval"), (2, 1), strict=True):
        row = frame.loc[("dspa", 300, metric)]
        mark = r"\*\*" if row["p_holm"] < 0.05 else ""
        assert re.match(rf" {mark}\+{row['difference']:.{digits}f}{mark} \[.*\] $", cell), cell
    assert re.search(r"\(141 pairs, 3 unpaired\)", section), "DPO's record that failed has no pair"


@pytest.mark.usefixtures("without_figures")
def test_a_report_takes_the_place_of_a_report_only(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").touch()
    for out, expected in (
        (tmp_path / "mine", r"is not a report \(it has 'notes.txt'\)"),
        (run.folder, "is not a report"),
        (run.folder / "cells" / "report", "is among the run's cells"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "report", "is not a folder"),
    ):
        with pytest.raises(ValueError, match=expected):
            write_report(run, out)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="'dspo'; the run has: base, prompt, static_sae, dspa_paper, dspa, dpo"):
        run.against("dspo")


def test_the_command_takes_baseline_and_folder(folder, tmp_path, without_figures, capsys):
    with pytest.raises(typer.Exit) as ended:
        report(folder, baseline="dspa", out=tmp_path / "new")
    assert ended.value.exit_code == 1, "a cell of this run failed"
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'report.md'}\n"
