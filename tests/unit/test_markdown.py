"""Markdown by hand: what somebody else wrote stays text, in a code span and out of it."""

import re

import pytest
from markdown_it import MarkdownIt

from harness import markdown as md
from tests.injections import INJECTIONS

READER = MarkdownIt("commonmark", {"html": False}).enable("table")


def spans(text: str) -> list[str]:
    """What stands in code spans, and the kinds of everything else that is not a plain paragraph."""
    found = []
    for block in READER.parse(text):
        if block.type != "inline":
            if block.type not in ("paragraph_open", "paragraph_close"):
                found.append(block.type)
            continue
        found += [t.content if t.type == "code_inline" else t.type for t in block.children or () if t.type != "text"]
    return found


@pytest.mark.parametrize("text", ["plain", "a|b", "`", "``", "a `b` ``c`` d", " `a", "a` ", "x `````` y", *INJECTIONS])
def test_a_code_span_holds_the_whole_text_and_nothing_else_comes_of_it(text):
    (shown,) = spans(f"Texts: {md.code(text)}, and more")
    line = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ↵ ", text).replace("|", r"\|")
    assert shown.strip() == line.strip()
    assert spans(md.table(["a", "b"], [[md.code(text), "x"]])).count("td_open") == 2


@pytest.mark.parametrize("text", INJECTIONS)
def test_an_escaped_text_is_one_line_of_plain_text(text):
    kinds = spans(f"* {md.escape(text)} *end*")
    assert set(kinds) <= {"bullet_list_open", "list_item_open", "em_open", "em_close", "list_item_close"} | {
        "bullet_list_close",
        "text_special",
    }
    assert len(md.escape(text).splitlines()) == 1


def test_nothing_is_a_code_span_of_its_own():
    assert md.code(None) == "none"
    assert spans(f"a {md.code('')} b") != []


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_page_has_no_images_and_says_that_it_loads_nothing(text):
    for shown in (md.code(text), md.escape(text), text):
        page = md.html_page("<title>", f"# Audit\n\n{shown}\n")
        assert "default-src 'none'" in page and "<title>&lt;title&gt;" in page
        assert not re.search(r"<(img|script|iframe|object|svg|video|form|link|base|math)\b", page)
