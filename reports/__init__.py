"""Reports: from a run folder, and nothing else, to tables (CSV, LaTeX), figures, report.md and report.html.

`render.write_report` makes one, `run.read_run` reads what it is made of. Nothing is imported here, so that
reports.commands loads without them.
"""
