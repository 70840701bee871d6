"""`dspa-bench view` as a reader uses it, in headless Chromium: answers, traces, passages, and a run that goes on.

Runs where tests/integration/test_report_page.py does.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reports.view.server import Viewer
from reports.view.traces import Tracer
from tests.integration.test_report_page import (
    INJECTIONS,
    LAPTOP,
    MINUTES,
    PHONE,
    browser,  # noqa: F401 - a fixture
    pytestmark,  # noqa: F401 - skips without a browser
)
from tests.unit.synthetic_run import write_run
from tests.unit.test_dspa import fit
from tests.unit.traced_run import CELL, write_traced_run

AT_WORK = "dpo__n300__s2"
RESTED = 0.05
"""Seconds that the tests' server rests after making a page."""


@dataclass
class Page:
    """A page of a server that runs meanwhile, what it said and what it asked for."""

    url: str
    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, place: str) -> None:
        self.page.goto(self.url + place)
        self.page.wait_for_selector("html[data-ready]", state="attached")


@pytest.fixture
def opened(browser, monkeypatch):  # noqa: F811
    """`opened(folder, ...)`: a `Page` of a server of these folders."""
    servers, contexts = [], []
    monkeypatch.setattr("reports.view.watched.SHARE", 1 / (1 + RESTED))

    def open_page(*folders: Path, viewport=LAPTOP) -> Page:
        server = Viewer(folders, Tracer(), host="127.0.0.1", port=0)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        contexts.append(browser.new_context(viewport=viewport))
        made = Page(server.url, contexts[-1].new_page())
        made.page.set_default_timeout(MINUTES)
        made.page.on("console", lambda message: made.said.append(message.text))
        made.page.on("pageerror", lambda error: made.said.append(str(error)))
        made.page.on("request", lambda request: made.asked.append(request.url))
        return made

    yield open_page
    for context in contexts:
        context.close()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_base, triples, sae_refs) -> Iterator[Path]:
    model = fit(tiny_base("llama"), triples, sae_refs)
    return write_traced_run(tmp_path_factory.mktemp("view") / "run", model, triples)


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_an_answer_is_traced_down_to_the_passages_of_a_latent(opened, folder, viewport):
    seen = opened(folder, viewport=viewport)
    page = seen.page
    seen.open("#answers?metric=mt_bench&a=dspa&b=base&question=83")
    turns = page.locator("#v-answers .turn")
    turns.nth(1).get_by_role("button", name="Trace the edits").click()
    trace = turns.nth(1).locator(".trace")
    trace.locator(".tokens").wait_for()
    said = trace.locator(".note").first.inner_text()
    assert "tokens were edited" in said and "The prompt selected" in said
    assert trace.locator("caption").inner_text() == "All tokens, by latent"
    token = trace.locator(".token").first
    token.press("Enter")
    trace.locator("caption", has_text="of the residual stream").wait_for()
    assert token.get_attribute("aria-pressed") == "true"
    latent = trace.locator("tbody button").first
    number = latent.inner_text().removeprefix("#")
    latent.click()
    trace.get_by_text(f"Latent {number} fires").wait_for()
    assert trace.locator("li mark").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert seen.said == []
    assert {url.split("/")[2] for url in seen.asked} == {seen.url.split("/")[2]}, "nothing but its own server"
    (folder / "cells" / CELL / "artifact").rename(folder / "kept")
    try:
        seen = opened(folder, viewport=viewport)  # another server, which has loaded nothing
        seen.open("#answers?metric=mt_bench&a=dspa&b=base&question=83")
        seen.page.get_by_role("button", name="Trace the edits").first.click()
        seen.page.get_by_text("has no artifact any more").wait_for()
    finally:
        (folder / "kept").rename(folder / "cells" / CELL / "artifact")


def test_nothing_that_a_model_or_a_triple_says_runs(opened, folder):
    seen = opened(folder)
    page = seen.page
    count = len(INJECTIONS)
    edits = [[[0, 1.0, -1.0]] for _ in INJECTIONS]
    trace = {"tokens": INJECTIONS, "sizes": [0.5] * count, "latents": [7], "edits": edits}
    snippets = [{"text": f"[[{t}]] {t}", "token": t, "activation": 1.0, "kind": t} for t in INJECTIONS]
    page.route("**/trace?*", lambda route: route.fulfill(json=trace))
    page.route("**/latent?*", lambda route: route.fulfill(json={"snippets": snippets, "triples": 1}))
    seen.open("#answers?metric=mt_bench&a=dspa&b=base&question=83")
    page.get_by_role("button", name="Trace the edits").first.click()
    for token in page.locator(".token").all():
        token.click()
    page.locator(".trace tbody button").first.click()
    page.locator(".passages li").last.wait_for()
    assert page.locator(".token").all_text_contents() == INJECTIONS
    assert page.locator(".passages mark").count() >= count
    page.route("**/trace?*", lambda route: route.fulfill(json={"error": INJECTIONS[3]}))
    page.get_by_role("button", name="Trace the edits").first.click()
    page.locator(".trace .warning").wait_for()
    assert page.evaluate("window.hit") is None and seen.said == []
    assert not page.locator("main iframe, main object, main img, main base, main script").count()


@pytest.mark.parametrize("trouble", ["no connection", "a damaged file"])
def test_answers_that_did_not_come_are_asked_for_again(opened, folder, trouble):
    seen = opened(folder)
    page = seen.page

    def troubled(route):
        route.abort() if trouble == "no connection" else route.fulfill(json={"error": trouble})

    page.route("**/answers?*", troubled)
    seen.open("#answers?metric=mt_bench&a=dspa&b=base&question=83")
    page.get_by_text("The answers did not come").wait_for()
    page.unroute("**/answers?*")
    page.locator("#v-budget").select_option("100 triples")
    page.locator("#v-budget").select_option("300 triples")
    page.locator("#v-answers .turn .side .said").first.wait_for()
    assert page.locator("#v-question").input_value() == "83"


def test_the_page_follows_a_run_and_keeps_what_its_reader_chose(opened, tmp_path):
    folder = write_run(tmp_path / "run", unfinished=AT_WORK)
    done, state = folder / "cells" / AT_WORK, folder / "cells" / "dpo__n300__s1" / "cell.json"
    records = (done / "records").rename(tmp_path / "records")
    seen = opened(folder)
    page = seen.page
    seen.open("")
    page.get_by_text("32 of 33 cells over.").wait_for()
    assert "fitting" in page.locator("#live-work").inner_text()
    page.get_by_label("100 triples", exact=True).check()
    page.locator("#filter").fill("dpo")
    page.locator("#pair-a").select_option("dspa")
    page.locator("#v-seed").select_option("1")
    with page.expect_event("load"):
        records.rename(done / "records")
        (done / "cell.json").write_bytes(state.read_bytes())
    page.get_by_text("Complete: 33 of 33 cells over.").wait_for()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.get_by_label("100 triples", exact=True).is_checked()
    assert page.locator("#filter").input_value() == "dpo" and page.locator("#pair-a").input_value() == "dspa"
    assert page.locator("#v-seed").input_value() == "1"
    assert page.locator("#board tbody tr").evaluate_all("rows => rows.map(row => row.dataset.variant)") == ["dpo"]
    assert seen.said == []


def test_the_first_page_of_two_runs_leads_to_the_records_of_each(opened, folder, tmp_path):
    seen = opened(folder, write_run(tmp_path / "other"), viewport=PHONE)
    page = seen.page
    seen.open("")
    page.locator("#state-2", has_text="33 of 33 cells over").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator(".dt-search input").fill("other")
    page.locator("a.value").first.click()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert "/run/2/#answers" in page.url and page.locator("#v-answers .turn").count() > 0
    assert page.get_by_role("link", name="All runs").is_visible()
    assert seen.said == []
