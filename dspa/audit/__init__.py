"""The audit of a DSPA artifact: which features its map pushes on, what they fire on, which are really edited.

scan.py (what is read, in one pass) -> snippets.py, prompts.py, explain.py (a judge's view), truth.py (planted worlds),
effects.py (single edits), causal.py and recovery.py (what these say of the map)
-> audit.py ties them together; page.py, tables.py and causal_page.py write it down, command.py is the body of `audit`.
"""
