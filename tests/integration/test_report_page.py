"""report.html as a reader uses it, in headless Chromium.

Runs where Chromium is: named by $DSPA_BENCH_CHROMIUM, or found as chromium, chromium-browser or google-chrome.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.files import write_jsonl
from harness.responder import Completion
from harness.run_folder import RunFolder
from reports.page.build import html_report
from reports.run import read_run
from tests.injections import INJECTIONS
from tests.unit.synthetic_run import write_run
from tests.unit.test_reports_page import tables_of

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("DSPA_BENCH_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no Chromium: set DSPA_BENCH_CHROMIUM, or install one of {', '.join(NAMES)}"
)
LAPTOP, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
STEERED = "Zo\u00eb \U0001f98a softly answers."
MINUTES = 2 * 60_000
"""Milliseconds that a step may take on a busy machine before the browser is taken for hung."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a run in which models, judges and the suite itself wrote markup."""
    folder = write_run(tmp_path_factory.mktemp("page") / "run", failed_cell="dpo__n100__s1")
    for path in folder.glob("cells/*/records/mt_bench.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, text in enumerate(INJECTIONS):
            records[2 * number]["raw"] |= {"answer": text, "prompt": text, "judgment": text, "category": text}
        records[-1] |= {"value": None, "error": f"cannot be read: {INJECTIONS[0]}{INJECTIONS[3]}"}
        write_jsonl(path, records)
    _steer(folder, "dspa__n300__s0", {"96:1": ((0, 3), (6, 14)), "96:2": ()})
    plan = json.loads((folder / "plan.json").read_text())
    for named in (*plan["variants"], *plan["cells"]):
        if named.get("variant", named["name"]) == "static_sae":
            named["label"] = f"Static {INJECTIONS[3]}"
    (folder / "plan.json").write_text(json.dumps(plan))
    run = read_run(folder)
    found = tables_of(run)
    path = folder / "page.html"
    path.write_text(html_report(run, found), encoding="utf-8")
    return path, run, found


def _steer(folder: Path, cell: str, answers: dict[str, tuple[tuple[int, int], ...]]) -> None:
    """Give items of MT-Bench an answer that is in the store, with the parts of it that were edited."""
    home = RunFolder(folder).cell(cell)
    path = home.path / "records" / "mt_bench.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["item"] in answers:
            made = Completion(STEERED, (1, 2, 3, 4), 5, 4, True, edited=answers[record["item"]])
            home.answers("mt_bench").append({record["item"]: made}, None)
            del record["raw"]["answer"]
            record["raw"] |= replace(made, key=record["item"]).record_fields
    write_jsonl(path, records)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root.
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=MINUTES)
        yield made
        made.close()


class Opened:
    """The page as a browser shows it, what it said and what it asked for."""

    def __init__(self, browser, path: Path, address: str = "", **options) -> None:
        self.said, self.asked = [], []
        self.context = browser.new_context(**{"viewport": LAPTOP, "offline": True} | options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(MINUTES)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('policy', e.violatedDirective))"
        )
        self.page.goto(path.as_uri() + address)
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def shown(self) -> list[str]:
        """The variants of the leaderboard, from the top."""
        return self.page.locator("#board tbody tr").evaluate_all("rows => rows.map(row => row.dataset.variant)")

    def box(self, selector: str) -> dict[str, float]:
        found = self.page.locator(selector).first.bounding_box()
        assert found is not None, selector
        return found


@pytest.fixture(scope="module")
def laptop(browser, report):
    """One page for all tests that leave it as they found it, or do not mind how others left it."""
    opened = Opened(browser, report[0])
    yield opened
    opened.context.close()


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_first_screen_holds_the_finding_the_leaderboard_and_the_figure(browser, report, viewport):
    opened = Opened(browser, report[0], viewport=viewport)
    for selector in (
        "h1",
        ".finding",
        "#board tbody tr:first-child .value",
        "#leaderboard",
        "#figure",
        "#cost-plot svg",
    ):
        box = opened.box(selector)
        assert box["x"] >= 0 and box["y"] >= 0, selector
        assert box["x"] + box["width"] <= viewport["width"], selector
        assert box["y"] + box["height"] <= viewport["height"], selector
    assert opened.box("#cost-plot")["height"] >= 120
    scrolled = opened.page.evaluate("document.documentElement.scrollWidth")
    assert scrolled <= viewport["width"], "nothing sticks out to the right"
    opened.context.close()


def test_nothing_is_requested_nothing_complains_and_nothing_that_was_written_runs(browser, report):
    path = report[0]
    opened = Opened(browser, path)
    page = opened.page
    seen = []
    for number in range(len(INJECTIONS)):
        page.evaluate(f"location.hash = '#answers?metric=mt_bench&a=dspa&b=base&question={81 + number}'")
        page.wait_for_function("number => at('v-question').value === String(number)", arg=81 + number)
        page.wait_for_function("at('v-answers').children.length === 2")
        seen += opened.texts("#v-answers .side .said")
    page.locator("#v-category").select_option(INJECTIONS[0])
    for metric in ("alpaca_eval", "safety_rate"):
        page.locator("#metric").select_option(metric)
    for summary in page.locator("summary").all():
        summary.click()
    page.evaluate("location.hash = '#answers?metric=%3Cscript%3E&a=%22%5D&question=\\'+hit'")
    page.locator("#filter").fill("<img src=x onerror=window.hit=1>")
    assert page.evaluate("window.hit") is None
    assert opened.said == []
    assert opened.asked == [path.as_uri()]
    assert {INJECTIONS[0], INJECTIONS[3], INJECTIONS[8]} <= set(seen), "what a model wrote is shown as it wrote it"
    assert not page.locator("main iframe, main object, main img, main base, main script").count()
    opened.context.close()


def test_a_heading_sorts_the_leaderboard_with_the_mouse_and_with_the_keyboard(laptop, report):
    found = report[2]
    means = {row.variant: row.scores["mt_bench"].mean for row in found["comparison"].where(budget=300)}
    flops = {row.variant: row.cost.executed_flops for row in found["comparison"].where(budget=300)}
    page = laptop.page
    heading = page.locator("#board").get_by_role("columnheader", name="MT-Bench")
    heading.click()
    page.wait_for_selector("#board th[aria-sort=descending]")  # sorting begins after the event
    assert laptop.shown() == sorted(means, key=means.__getitem__, reverse=True)
    heading.get_by_role("button").press("Enter")
    page.wait_for_selector("#board th[aria-sort=ascending]")
    assert laptop.shown() == sorted(means, key=means.__getitem__)
    page.locator("#board").get_by_role("columnheader", name="fit FLOPs").click()
    page.wait_for_selector("#board th[aria-sort=ascending][data-cost]")
    assert [flops[variant] for variant in laptop.shown()] == sorted(flops.values()), "costs: the least first"


def test_the_filter_and_the_budget_switch_choose_rows_and_the_figure_follows(laptop, report):
    _, run, found = report
    page = laptop.page
    page.locator("#filter").fill("dspa")
    assert sorted(laptop.shown()) == ["dspa", "dspa_paper"]
    page.locator("#filter").fill("")
    assert sorted(laptop.shown()) == sorted(run.plan.labels)
    page.get_by_label("100 triples", exact=True).check()
    (row,) = found["comparison"].where(variant="dspa", budget=100)
    cell = page.locator("#board tr[data-variant=dspa] .value").first
    assert cell.inner_text() == f"{row.scores['mt_bench'].mean:.2f} (3 failed)"
    drawn = page.evaluate("at('cost-plot').data.map(trace => trace.y[0])")
    assert pytest.approx(row.scores["mt_bench"].mean, rel=1e-5) in drawn
    assert page.locator("#pair-budget").input_value() == "100 triples"
    page.get_by_label("300 triples", exact=True).check()
    assert sorted(laptop.shown()) == sorted(run.plan.labels)


def test_the_figure_names_the_pareto_set_and_switches_its_metric_and_cost(laptop, report):
    run = report[1]
    page = laptop.page
    for metric, cost in (("alpaca_eval", "seconds"), ("mt_bench", "fit")):
        page.locator("#metric").select_option(metric)
        page.locator("#cost-axis").select_option(cost)
        named = page.locator("#pareto").inner_text()
        front = page.evaluate(f"data.pareto.{metric}['300 triples'].{cost}")
        assert all(run.plan.labels[variant] in named for variant in front)
        labels = page.evaluate("at('cost-plot').data.filter(t => t.mode.includes('text')).map(t => t.text[0])")
        assert len(labels) == len(front)
    hover = page.evaluate("at('cost-plot').data.map(trace => trace.hovertemplate).join()")
    assert "&lt;img src=x" in hover and "<img" not in hover, "Plotly reads markup; a label is none"


def test_a_number_opens_its_records_side_by_side_with_the_baselines(laptop, report):
    _, run, _ = report
    page = laptop.page
    page.locator("#board tr[data-variant=dspa] a.value").first.click()
    page.wait_for_function("at('v-a').value === 'dspa' && at('v-b').value === 'base'")
    page.locator("#v-question").select_option("94")
    page.wait_for_function("at('v-summary').textContent.includes('MT-Bench')")
    cells = {cell.planned.name: cell for cell in run.cells}
    items = ("94:1", "94:2")
    for place, name in ((0, "dspa__n300__s0"), (1, "base__n0__s0")):
        records = {record.item: record for record in cells[name].records["mt_bench"]}
        for turn, item in enumerate(items):
            side = page.locator("#v-answers .turn").nth(turn).locator(".side").nth(place)
            side.get_by_text(records[item].raw["answer"]).wait_for()
            assert f"{records[item].value:.2f} rating 1-10" in side.locator("h4").inner_text()
    page.locator("#v-next").click()
    assert page.locator("#v-question").input_value() == "95"
    page.locator("#v-seed").select_option("1")
    record = {record.item: record for record in cells["dspa__n300__s1"].records["mt_bench"]}["95:1"]
    page.locator("#v-answers .side h4", has_text=f"{record.value:.2f}").first.wait_for()
    page.locator("#v-order").select_option("left")
    page.wait_for_function("at('v-question').selectedIndex === 0")
    gaps = page.evaluate("at('v-question').value")
    first, second = (cells[n].records["mt_bench"] for n in ("dspa__n300__s1", "base__n0__s1"))
    values = [{r.item: r.value for r in records if r.cluster == gaps} for records in (first, second)]
    assert sum(values[0].values()) > sum(values[1].values()), "where the left one is better comes first"


def test_the_parts_of_an_answer_that_were_edited_are_marked(laptop):
    page = laptop.page
    page.locator("#board tr[data-variant=dspa] a.value").first.click()
    page.wait_for_function("at('v-a').value === 'dspa' && at('v-b').value === 'base'")
    page.locator("#v-seed").select_option("0")
    page.locator("#v-question").select_option("96")
    first, second = (page.locator("#v-answers .turn").nth(turn).locator(".side").first for turn in (0, 1))
    first.get_by_text("edited where marked").wait_for()
    assert first.locator(".said").first.inner_text() == STEERED
    assert first.locator("mark").all_inner_texts() == [STEERED[:3], STEERED[6:14]] == ["Zoë", "softly a"]
    second.get_by_text("4 tokens, steering on at every one; nothing was edited.").wait_for()
    assert second.locator("mark").count() == 0


def test_two_methods_are_compared_by_the_tested_difference(laptop, report):
    found = report[2]
    page = laptop.page
    page.locator("#pair-a").select_option("dspa")
    page.locator("#pair-b").select_option("base")
    page.locator("#pair-budget").select_option("300 triples")
    (row,) = found["differences"].where(variant="dspa", budget=300, metric="mt_bench")
    first = page.locator("#pair tbody tr").first
    assert f"{row.difference:+.2f} [{row.low:.2f}, {row.high:.2f}]" in first.inner_text()
    assert ("better" in first.locator("td").last.inner_text()) == row.significant
    page.locator("#pair-a").select_option("base")
    page.locator("#pair-b").select_option("dspa")
    assert f"{-row.difference:+.2f} [{-row.high:.2f}, {-row.low:.2f}]" in first.inner_text()
    page.locator("#pair-a").select_option("dpo")
    tested = found["pairs"].where(budget=300, metric="mt_bench", variant="dpo", against="dspa")
    turned = found["pairs"].where(budget=300, metric="mt_bench", variant="dspa", against="dpo")
    (gap,) = [*(r.difference for r in tested), *(-r.difference for r in turned)]
    assert f"{gap:+.2f} [" in first.inner_text()


def test_numbers_are_rounded_as_in_the_files_beside_the_page(laptop):
    for value, digits in ((21.25, 1), (21.35, 1), (-0.125, 2), (1234.5, 0), (0.0005, 3), (6.025, 2), (7, 2)):
        assert laptop.page.evaluate(f"number({value}, {digits}, true)") == f"{value:+,.{digits}f}"


def test_a_screen_reader_finds_a_name_for_every_control_and_table(laptop):
    page = laptop.page
    nameless = page.evaluate(
        "[...document.querySelectorAll('select, input, button')].filter(e => !e.ariaLabel && !e.labels?.length && "
        "!e.textContent.trim()).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert page.evaluate("[...document.querySelectorAll('table')].every(table => table.caption)")
    assert page.locator("[role=region], [role=img]").evaluate_all("all => all.every(e => e.ariaLabel)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


def test_the_page_is_dark_where_the_reader_wants_it_and_plain_on_paper(laptop):
    page = laptop.page
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
    page.emulate_media(color_scheme="light", media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("#board").is_visible()
    page.emulate_media(media="screen")


def test_answers_that_were_left_out_are_said_to_be(browser, report, tmp_path):
    _, run, found = report
    short = tmp_path / "short.html"
    short.write_text(html_report(run, found, limit=30_000), encoding="utf-8")
    opened = Opened(browser, short, "#answers?metric=mt_bench&a=dspa&b=base&seed=2")
    opened.page.get_by_text("the answers of dspa__n300__s2 are not in this file").wait_for()
    assert "Not in this file; see cells/dspa__n300__s2 in the run folder." in opened.texts("#v-answers .side .note")
    assert opened.said == []
    opened.context.close()
