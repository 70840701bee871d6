"""The audit of a DSPA artifact: which features its map pushes on, what they fire on, which are really edited.

texts.py (what is read) -> scan.py (one pass, memory flat) -> ranking.py, snippets.py, prompts.py, coverage.py,
explain.py (a judge's view), truth.py and standing.py (planted worlds) -> audit.py ties them together;
page.py, tables.py, truth_tables.py and export.py write it down.
"""

from dspa.audit.audit import Audit, AuditSettings, audit
from dspa.audit.export import to_csv, to_json
from dspa.audit.page import to_markdown
from dspa.audit.texts import Corpus, read_corpus

__all__ = ["Audit", "AuditSettings", "Corpus", "audit", "read_corpus", "to_csv", "to_json", "to_markdown"]
