"""MT-Bench: two-turn questions, each category at its temperature, rated or compared by a judge."""

from tasks.mt_bench.benchmark import MTBench

__all__ = ["MTBench"]
