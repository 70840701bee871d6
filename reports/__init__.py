"""Reports: from a run folder, and nothing else, to tables, figures, report.md and report.html."""

from reports.render import html_page, write_report
from reports.run import Cell, Run, read_run

__all__ = ["Cell", "Run", "html_page", "read_run", "write_report"]
