"""reports.page: what stands in report.html, without a browser (tests/integration/test_report_page.py has one)."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from harness.files import write_jsonl
from harness.responder import Completion
from harness.run_folder import RunFolder
from reports import findings
from reports.page import archive, libraries
from reports.page.build import html_report
from reports.page.grids import Cell, Grid, diagnostic_grids, folded, grid
from reports.page.leaderboard import in_short, leaderboard
from reports.page.points import figure_data, pairs
from reports.render import tables_of
from reports.run import read_run
from reports.tables import Diagnostic, Table
from tests.unit.synthetic_run import NASTY, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    return read_run(write_run(folder, failed_cell="dpo__n100__s1", unfinished="static_sae__n300__s2"))


@pytest.fixture(scope="module")
def found(run):
    return tables_of(run)


@pytest.fixture(scope="module")
def html(run, found):
    return html_report(run, found)


def unpacked(text: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(text)))


class Elements(HTMLParser):
    """All start tags with their attributes, and the text of every script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.inside = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))


def test_nothing_is_loaded_and_only_scripts_known_by_their_hash_may_run(html):
    elements = Elements(html)
    assert not [tag for tag, attributes in elements.tags if {"src", "srcset", "background"} & attributes.keys()]
    assert not [tag for tag, _ in elements.tags if tag in ("link", "iframe", "object", "embed", "base", "img")]
    assert not [a for _, attributes in elements.tags for a in attributes if a.startswith("on")]
    assert all((a["href"] or "").startswith("#") for tag, a in elements.tags if tag == "a")
    (policy,) = [a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0] and "unsafe-eval" not in policy
    (ours,) = [text for attributes, text in elements.scripts if "type" not in attributes]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()}'" in policy
    assert {attributes["type"] for attributes, _ in elements.scripts if "type" in attributes} == {
        "application/json",
        "text/plain",
    }


def test_what_a_model_or_a_judge_said_starts_no_element(html):
    assert "<script>alert(1)" not in html
    assert "&#39;I cannot | rate&#39;" in html, "a failed record's reason is shown"
    (data,) = [text for attributes, text in Elements(html).scripts if attributes.get("id") == "page-data"]
    assert "<" not in data
    json.loads(data)


def test_two_reports_of_one_run_are_the_same(run, found, html):
    assert html_report(run, found) == html


def test_the_first_screen_says_what_was_compared_what_came_out_and_what_is_missing(html):
    header = html[html.index("<header>") : html.index("</header>")]
    assert "6 variants on 100 and 300 triples, 3 seeds; baseline Base" in header
    assert "are better than Base on some measure and worse on none." in header
    assert "Not everything was measured" in header


def test_the_sentence_counts_what_it_cannot_name(run, found):
    effects = findings.effects(run, found["comparison"], found["differences"], 300)
    assert in_short(run, effects)[-1].startswith("No detectable effect: Prompt")
    unmoved = next(effect for effect in effects if effect.verdict == "nothing")
    assert in_short(run, [unmoved] * 7)[-1] == "No detectable effect: 7 variants."
    assert in_short(run, []) == []


def test_the_leaderboard_has_what_the_tables_have(run, found):
    board = leaderboard(run, found["comparison"], found["differences"], findings.drops(run, found["comparison"]))
    titles = [column.title for column in board.columns]
    assert titles[:2] == ["MT-Bench", "AlpacaEval win rate"] and titles[-3:] == ["multiple choice", "fit", "time"]
    (row,) = [row for row in board.rows if (row.variant, row.budget) == ("dspa", "300 triples")]
    (score,) = found["comparison"].where(variant="dspa", budget=300)
    assert float(row.entries[0].order) == pytest.approx(score.scores["mt_bench"].mean)
    assert row.entries[0].mark == "better" and "corrected p" in row.entries[0].why
    assert row.entries[0].link == "#answers?metric=mt_bench&a=dspa&b=base&budget=300+triples"
    (row,) = [row for row in board.rows if (row.variant, row.budget) == ("dpo", "300 triples")]
    choices = row.entries[titles.index("multiple choice")]
    assert choices.mark == "dropped" and "sandbox_facts" in choices.why


def test_the_pareto_set_is_that_of_the_means(run, found):
    data = figure_data(run, found["comparison"])
    json.dumps(data, allow_nan=False)
    at = {
        row.variant: (row.cost.executed_flops, row.scores["mt_bench"].mean)
        for row in found["comparison"].where(budget=300)
    }
    beaten = {
        v for v, (cost, mean) in at.items() if any(w != v and c <= cost and m >= mean for w, (c, m) in at.items())
    }
    assert set(data["pareto"]["mt_bench"]["300 triples"]["fit"]) == set(at) - beaten


def test_pairs_without_the_baseline_are_added_to_the_differences(run, found):
    row = SimpleNamespace(
        variant="dpo", against="dspa", budget=300, metric="mt_bench", difference=1.0, low=0.5, high=1.5, p_holm=0.01
    )
    own = SimpleNamespace(**vars(row) | {"against": "base"})
    rows = pairs(run, found | {"pairs": [row, own]})
    assert len(rows) == len(found["differences"]) + 1
    assert rows[-1] == {
        "a": "dpo",
        "b": "dspa",
        "budget": "300 triples",
        "metric": "mt_bench",
        "difference": 1.0,
        "low": 0.5,
        "high": 1.5,
        "p_holm": 0.01,
    }


def test_every_answer_and_verdict_of_a_done_cell_is_in_the_archive(run):
    made = archive.archive(run)
    done = {cell.planned.name for cell in run.cells if cell.done}
    assert {chunk.name for chunk in made.cells} == done and not made.left_out
    questions = unpacked(made.questions.packed)
    (chunk,) = [chunk for chunk in made.cells if chunk.name == "dspa__n300__s0"]
    content = unpacked(chunk.packed)
    (cell,) = [cell for cell in run.cells if cell.planned.name == chunk.name]
    for benchmark, records in cell.records.items():
        for record in records:
            asked = questions[benchmark][record.metric]
            (number,) = [at for at, (item, *_) in enumerate(asked) if item == record.item]
            (row,) = [row for row in content["records"][benchmark][record.metric] if row[0] == number]
            _, value, error, rest, answer, _ = row
            assert (value, error) == (record.value, record.error)
            _, cluster, shared = asked[number]
            text = content["answers"][benchmark][answer][0]
            assert cluster == record.cluster
            assert shared | rest | {"answer": text} == record.raw


def test_an_answer_in_the_store_is_held_once_with_its_steering_and_the_second_judges_verdict(tmp_path):
    folder = write_run(tmp_path / "run")
    cell = RunFolder(folder).cell("dspa__n300__s0")
    path = cell.path / "records" / "safety.jsonl"
    first, second, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    for record in (first, second):
        record["raw"] = {"prompt": "Hello", "answer_key": "0a1b", "judge": "one"}
    lost = rest[0] | {"raw": {"prompt": "Hello", "answer_key": "ffff"}}
    write_jsonl(path, [first, second, lost, *rest[1:]])
    cell.answers("safety").append({"0a1b": Completion(NASTY, (1, 2, 3), 5, 3, False, edited=((0, 7),))}, None)
    run = read_run(folder)
    (place,) = [at for at, found in enumerate(run.cells) if found.planned.name == "dspa__n300__s0"]
    again = run.cells[place].records["safety"][0]
    run.cells[place].second["safety"] = (again,)
    (chunk,) = [c for c in archive.archive(run).cells if c.name == "dspa__n300__s0"]
    content = unpacked(chunk.packed)
    rows = content["records"]["safety"][first["metric"]]
    assert rows[0][4] == rows[1][4]
    assert content["answers"]["safety"][rows[0][4]] == [NASTY, 3, 3, False, [[0, 7]]]
    assert content["answers"]["safety"][rows[2][4]] == [None] * 5
    assert rows[0][5][0] == again.value and rows[0][5][2]["judge"] == "one"


def test_what_does_not_fit_the_limit_is_named_in_the_page_and_seeds_are_left_out_first(run, found):
    everything = archive.archive(run)
    made = archive.archive(run, limit=everything.size - 1)
    assert made.size < everything.size and len(made.left_out) == 1
    half = archive.archive(run, limit=everything.size // 2)
    order = [chunk.name for chunk in half.cells] + half.left_out
    assert [name[-1] for name in order] == sorted(name[-1] for name in order), "by seeds"
    assert order.index("dspa__n300__s0") < order.index("dspa__n100__s0") < order.index("base__n0__s1")
    html = html_report(run, found, limit=everything.size // 2)
    assert f"This file holds {len(half.cells)} of {len(order)} cells' answers" in html
    assert all(name in html for name in half.left_out)


def test_rows_of_zeros_and_columns_of_one_value_are_folded_away_and_named():
    rows = [
        [Cell("a"), Cell("x"), Cell("0.0", "0"), Cell("–")],
        [Cell("b"), Cell("x"), Cell("1.5", "1.5"), Cell("7", "7")],
        [Cell("c"), Cell("x"), Cell("2.5", "2.5"), Cell("7", "7")],
    ]
    made = folded(Grid("", ["variant", "kind", "one", "two"], [False, False, True, True], rows))
    assert made.headers == ["variant", "one"] and [row[0].text for row in made.rows] == ["b", "c"]
    assert list(made.constant) == [("kind", "x"), ("two", "7")] and list(made.idle) == ["a"]
    zeros = folded(Grid("", ["variant", "one"], [False, True], [[Cell("a"), Cell("0", "0")]]))
    assert len(zeros.rows) == 1 and not zeros.idle


def test_a_grid_writes_numbers_as_people_do(run, found):
    made = grid(run, "compute", found["compute"], "Bills")
    assert "executed FLOPs" in made.headers
    (row,) = [
        row for row in made.rows if [cell.text for cell in row[:3]] == ["DSPA (strict gate)", "dspa", "300 triples"]
    ]
    cells = dict(zip(made.headers, row, strict=True))
    assert re.fullmatch(r"\d\.\d\de\+\d\d", cells["executed FLOPs"].text)
    assert float(cells["executed FLOPs"].order) == found["compute"].where(variant="dspa", budget=300)[0].executed_flops
    differences = grid(run, "differences", found["differences"], "Differences")
    assert re.search(r" \[-?[\d.]+, -?[\d.]+\]$", differences.rows[0][differences.headers.index("difference")].text)
    assert "low" not in differences.headers


def test_diagnostics_stand_by_benchmark(run):
    rows = [Diagnostic("dspa", 300, "mt_bench.share", 0.25, 3), Diagnostic("dspa", 300, "safety.share", 1.0, 3)]
    first, second = diagnostic_grids(run, Table(Diagnostic._fields, rows))
    assert (first.caption, second.caption) == ("mt_bench", "safety")
    assert [cell.text for cell in first.rows[0]] == ["DSPA (strict gate)", "300 triples", "0.25"]


def test_a_library_that_is_not_there_or_is_built_otherwise_is_named(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"needs nowhere/x\.js of the package no-such-package-here"):
        libraries._shipped("no-such-package-here", "nowhere/x.js")
    monkeypatch.setattr("reports.page.libraries._shipped", lambda *_: "export{a as b}")
    with pytest.raises(ValueError, match="does not export DataTables as its default"):
        libraries.datatables.__wrapped__()
    monkeypatch.setattr("reports.page.libraries._shipped", lambda *_: "var a=1;export{a as default};//end")
    assert "window.DataTable = a;//end" in libraries.datatables.__wrapped__().text
