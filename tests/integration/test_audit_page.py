"""audit.html in headless Chromium: what texts, models and judges wrote is shown, and does nothing."""

from dataclasses import replace

import pytest
import torch

from dspa.audit.audit import AuditSettings, audit
from dspa.audit.explain import Explanation
from dspa.audit.page import to_markdown
from dspa.audit.scan import read_corpus
from dspa.audit.snippets import Snippet
from dspa.method import DSPA
from harness.compute import Meter
from harness.markdown import html_page
from tests.injections import INJECTIONS
from tests.integration.test_report_page import MINUTES, browser, pytestmark  # noqa: F401


@pytest.fixture(scope="module")
def page(tmp_path_factory, tiny_base, sae_refs, triples):
    """The page of an audit whose snippets, explanations and prompts are the corpus of injections."""
    base = tiny_base()
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], gate="strict", min_support=2, k_prompt=4, k_diff=3)
    artifact = method.fit(base, triples, meter=Meter(base.model), seed=0)
    folder = tmp_path_factory.mktemp("audit")
    texts = folder / "texts.txt"
    texts.write_text("\n".join(f"w{n} w{n + 1} w{n + 2}" for n in range(9)))
    torch.manual_seed(0)
    found = audit(artifact, read_corpus(texts, artifact), AuditSettings(top=3, snippets=1, examples=0, generate=0))
    latents = sorted(set().union(*found.ranking.values()))
    texts_of = {latent: [*INJECTIONS] for latent in latents}
    found = replace(
        found,
        snippets={latent: [Snippet(text, text, 1.0, "text") for text in texts_of[latent]] for latent in latents},
        explanations={
            latent: Explanation(True, INJECTIONS[n % len(INJECTIONS)], (INJECTIONS[0],), "Content")
            for n, latent in enumerate(latents)
        },
    )
    path = folder / "audit.html"
    path.write_text(html_page(f"Audit of {INJECTIONS[0]}", to_markdown(found, INJECTIONS[3], INJECTIONS[12], "m")))
    return path


def test_nothing_in_an_audit_page_runs_loads_or_leads_the_browser_away(browser, page):  # noqa: F811
    context = browser.new_context(offline=True)
    opened = context.new_page()
    opened.set_default_timeout(MINUTES)
    asked, said = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.goto(page.as_uri())
    assert opened.evaluate("window.hit") is None
    assert asked == [page.as_uri()] and said == []
    assert opened.locator("img, script, iframe, object, svg, video, form, base, math, details").count() == 0
    shown = opened.locator("body").inner_text()
    assert all(text in shown for text in (INJECTIONS[0], INJECTIONS[3], "`` ![t](http://127.0.0.1:9/t.png) ``"))
    hrefs = opened.locator("a").evaluate_all("all => all.map(a => a.protocol)")
    assert set(hrefs) <= {"https:", "http:"}
    context.close()
