"""`dspa-bench perf`: how fast DSPA is, on random models of real proportions or on a given one.

synthetic.py (what is made up) -> subject.py (what is measured on), naive.py (what it is measured against) ->
steering.py, fit.py, ridge.py and engine.py (the measurements) -> commands.py.
"""
