"""Markdown by hand: escaping, tables, how numbers are written; and Markdown as an HTML page."""

import re
from collections.abc import Iterable, Sequence
from html import escape as escape_html
from math import isnan
from pathlib import Path
from string import Template

from harness.run_folder.plan import BudgetName, budget_text

EMPTY = "–"
_LINE_BREAK = r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*"


def escape(text: object) -> str:
    """``text`` as one line that Markdown shows as it is, whatever characters it has."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", str(text).strip())
    return re.sub(_LINE_BREAK, " ↵ ", escaped)


def code(text: object) -> str:
    """``text`` as a code span of one line that may stand in a table; "none" for None."""
    if text is None:
        return "none"
    shown = re.sub(_LINE_BREAK, " ↵ ", str(text)).replace("|", r"\|")
    longest = max(map(len, re.findall("`+", shown)), default=0)
    # A span ends where as many backticks stand as it began with; a space keeps those of the text apart from them.
    fence, space = "`" * (longest + 1), " " if longest or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A pipe table of cells that are already Markdown; those after ``text_columns`` are right-aligned."""
    rule = ["---" if index < text_columns else "---:" for index in range(len(headers))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rule, *rows))


def number(value: float | None, digits: int = 1) -> str:
    """``value`` with grouped thousands; a dash when it is missing."""
    return EMPTY if value is None or isnan(value) else f"{value:,.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    return EMPTY if isnan(value) else f"{value:+,.{digits}f}"


def interval(low: float, high: float, digits: int = 1) -> str:
    return "[no interval]" if isnan(low) else f"[{low:,.{digits}f}, {high:,.{digits}f}]"


def p_value(p: float) -> str:
    if isnan(p):
        return EMPTY
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def flops(value: float) -> str:
    """FLOPs with three digits, e.g. ``1.23e+13``; 0 as ``0``."""
    if isnan(value):
        return EMPTY
    return f"{value:.2e}" if value else "0"


def bytes_(value: float) -> str:
    return EMPTY if isnan(value) else f"{value / 2**20:,.0f} MiB"


def words(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def budget(name: BudgetName) -> str:
    """A number of triples as it is, a bill in words."""
    return str(name) if isinstance(name, int) else budget_text(name)


def html_page(title: str, text: str) -> str:
    """Markdown ``text`` as a page of its own that shows no images and loads nothing.

    Raw HTML in it stays text, whatever a model answered.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(text)
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return page.substitute(title=escape_html(title), body=body)
