"""The report as a whole: how long it is for many methods, and that it says nothing of the machine it was made on."""

import json
import re
import shutil
from itertools import product
from typing import Any

import pytest

from harness.run_folder import Plan
from harness.seals import read_document
from reports.comparison import comparison, constant_metrics
from reports.figures import spread, write_figures
from reports.latex import latex
from reports.places import shown
from reports.render import write_report
from reports.run import read_run
from reports.sections import leaders
from reports.tables import DifferenceRow, Table
from tests.unit.synthetic_run import write_run

METHODS, BUDGETS = 22, (25, 50, 100, 300)
HOME = "/home/somebody/private"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of 22 methods at 4 budgets, of which the suite names everything by absolute paths."""
    folder = write_run(tmp_path_factory.mktemp("whole") / "run")
    _enlarge(folder)
    _name_by_absolute_paths(folder)
    return write_report(folder).parent


def _enlarge(folder):
    """Copies of DPO under new names, and of all cells that use triples at new budgets."""
    plan = Plan.read(folder / "plan.json")
    dpo = plan.variants[-1]
    more = [dpo.model_copy(update={"name": f"dpo_{i}", "label": f"DPO, variant {i}"}) for i in range(METHODS - 6)]
    variants, cells = (*plan.variants, *more), [cell for cell in plan.cells if cell.sweep is not None]
    planned = {(cell.variant, cell.budget, cell.seed): cell for cell in plan.cells if cell.sweep is None}
    for variant, seed in product(variants, range(plan.seeds)):
        for budget in BUDGETS if variant.uses_triples else (0,):
            source = "dpo" if variant in more else variant.name
            cell = planned[source, budget if budget in (0, 300) else 100, seed]
            name = f"{variant.name}__n{budget}__s{seed}"
            if name != cell.name:
                shutil.copytree(folder / "cells" / cell.name, folder / "cells" / name)
            cells.append(cell.model_copy(update={"name": name, "variant": variant.name, "budget": budget}))
    update = {"cells": tuple(cells), "variants": variants, "budgets": BUDGETS}
    plan.model_copy(update=update).write(folder / "plan.json")


def _name_by_absolute_paths(folder):
    def edit(name, change):
        path = folder / name
        path.write_text(json.dumps(read_document(path.read_bytes()) | change))

    environment = read_document((folder / "environment.json").read_bytes())
    edit(
        "environment.json",
        {
            "command": f"dspa-bench run {HOME}/suites/mine.yaml --out='{HOME}/my runs/one'",
            "base": environment["base"] | {"path": f"{HOME}/models/base"},
            "saes": {"early": environment["saes"]["early"] | {"path": f"../../..{HOME}/saes/early"}},
            "triples": environment["triples"] | {"path": f"{HOME}/data/triples.jsonl"},
            "judge": {"label": f"prompted {HOME}/models/judge", "statement": f"Read {HOME}/prompt.txt, it says."},
            "notes": [f"{HOME}/data/alpaca_eval/df.csv is missing."],
        },
    )
    plan = read_document((folder / "plan.json").read_bytes())
    plan["variants"][2]["settings"] = {"sae": f"../../../..{HOME}/saes/early"}
    edit("plan.json", plan)
    edit("cells/dpo__n300__s0/cell.json", {"origin": f"{HOME}/runs/other"})
    failed = {"status": "failed", "error": f"ValueError: {HOME}/models/base: no config.json"}
    edit("cells/dpo__n25__s0/cell.json", failed)
    path = folder / "cells/dpo__n50__s0/records/alpaca_eval.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"value": None, "error": f"{HOME}/x.json: bad"}), *rest]))


def test_it_has_at_most_300_lines_for_22_methods_at_4_budgets(report):
    lines = (report / "report.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    assert [line for line in lines if line.startswith("| DPO, variant 15 |")], "and names them all"


def test_no_file_says_where_on_the_machine_anything_lies(report):
    found = [path for path in sorted(report.rglob("*")) if path.is_file()]
    assert {path.suffix for path in found} == {".md", ".html", ".csv", ".tex", ".png", ".svg"}
    for path in found:
        for place in (HOME, "somebody", str(report.parent.parent)):
            assert place.encode() not in path.read_bytes(), path
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "| base model | …/models/base, hash `aaaa1111` |" in text
    assert "`dspa-bench run …/suites/mine.yaml --out='…/my runs/one'`" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/work/shared/models/m", "…/models/m"),
        ("/tmp/x", "…/x"),
        ("--out=/tmp/a/b.", "--out=…/a/b."),
        ("'/home/my name/d/x' is bad", "'…/d/x' is bad"),
        ("/a/b/c.jsonl:12: bad", "…/b/c.jsonl:12: bad"),
        ("file:///home/me/x.json", "…/me/x.json"),
        (r"C:\Users\me\model", "…/me/model"),
        ("../../../work/m", "…/work/m"),
        ("../../tasks/x", "../../tasks/x"),
        ("http://127.0.0.1:8000/v1/x, 1/2 and/or a / b, </s> at /v1", None),
        ({"/a/b/c": ["/a/b/c", 1, None, 0.5]}, {"…/b/c": ["…/b/c", 1, None, 0.5]}),
    ],
)
def test_paths_are_cut_to_their_last_parts_and_nothing_else_is_touched(text, expected):
    assert shown(text) == (text if expected is None else expected)
    assert shown(shown(text)) == shown(text)


def test_every_table_is_there_as_csv_and_as_latex(report):
    tables = {path.stem for path in (report / "tables").glob("*.csv")}
    assert tables == {path.stem for path in (report / "tables").glob("*.tex")}
    assert {"comparison", "compute", "differences", "settings"} <= tables
    for path in (report / "tables").glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        begin = re.findall(r"^\\begin\{tabular\}\{([lr]+)\}$", text, re.MULTILINE)
        assert len(begin) == 1 and text.endswith("\\end{tabular}\n"), path
        assert [text.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [1, 1, 1]
        rows = [line for line in text.splitlines() if line.endswith("\\\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(begin[0])}, path
        assert not re.search(r"(?<!\\)[%#_$]", "".join(rows)), path
        assert len(rows) == len(path.with_suffix(".csv").read_text(encoding="utf-8").splitlines()), path


def test_latex_escapes_and_leaves_empty_what_is_missing():
    text = latex(["a_b", "c"], [["100 % {x} & \\y\n~", 1.23456], [None, float("nan")]])
    assert r"a\_b & c \\" in text
    assert r"100 \% \{x\} \& \textbackslash{}y \textasciitilde{} & 1.235 \\" in text
    assert re.search(r"^ & \\\\$", text, re.MULTILINE)


def test_figures_leave_out_what_is_constant_and_are_the_same_byte_by_byte_for_the_same_run(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("cells/*/records/multiple_choice.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [r | ({"value": 100.0} if r["metric"] == "sandbox_scenes" else {}) for r in records]
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    run = read_run(folder)
    table = comparison(run)
    assert constant_metrics(run) == {"sandbox_scenes": 100.0}
    first, second = (write_figures(run, table, tmp_path / name) for name in ("first", "second"))
    assert first == second == [f"quality_vs_{what}.{kind}" for what in ("flops", "data") for kind in ("png", "svg")]
    for name in first:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    text = (tmp_path / "first" / "quality_vs_flops.svg").read_text(encoding="utf-8")
    assert ">sandbox_facts</text>" in text, "text stays text"
    assert "sandbox_scenes" not in text
    assert text.count(">DSPA (strict gate)</text>") == 5, "each panel names every series"
    assert text.count(">axis break</text>") == 5


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([0.5, 0.1, 0.9], [0.5, 0.1, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([1.0, 1.0], [0.9, 1.0]),
        ([0.0] * 3, [0, 0.1, 0.2]),
    ],
)
def test_names_are_spread_no_further_than_others_need(wanted, expected):
    assert spread(wanted, 0.1) == pytest.approx(expected)


def test_who_cannot_be_told_from_the_best_is_named(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    apart = [("dspa", "base"), ("dspa", "prompt"), ("dspa", "static_sae"), ("dpo", "dspa")]
    figures: dict[str, Any] = {
        "difference": 1.0,
        "low": 0.5,
        "high": 1.5,
        "p": 0.001,
        "p_holm": 0.01,
        "se": 0.2,
        "df": 5.0,
    }
    figures |= {"budget": 300, "metric": "mt_bench", "n": 144, "unpaired": 0, "detectable": 0.9}
    rows = [DifferenceRow(variant=a, against=b, **figures) for a, b in apart]
    line = leaders(run, comparison(run), Table(DifferenceRow._fields, rows))[0]
    expected = (
        "DSPA (strict gate) has the best mean, significantly better than 4 of 5; not told from DSPA (paper gate)."
    )
    assert line == f"MT-Bench: {expected}"
