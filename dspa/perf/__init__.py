"""`dspa-bench perf`: how fast DSPA is, on random models of real proportions.

synthetic.py, synthetic_sae.py   what is measured on -> steering.py (with decoding.py, naive_decoding.py, launches.py)
                                 and fit.py (with naive_fit.py, map_cost.py) -> report.py
"""
