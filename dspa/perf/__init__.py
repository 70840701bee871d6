"""`dspa-bench perf`: how fast DSPA is, on random models of real proportions.

synthetic.py (what is measured on), naive.py (what it is measured against) -> steering.py, fit.py and ridge.py (the
measurements).
"""
