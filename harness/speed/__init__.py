"""Speed as ratios from one interleaved run: compare.py measures, report.py says it; meter.py and lm_eval.py are two."""
