"""Registers the benchmarks and the sandbox's judge. Not in tasks/__init__, because `tasks.commands` is to load at once."""

from tasks import alpaca_eval, mt_bench, multiple_choice, preference, safety
from tasks.sandbox import oracle

__all__ = ["alpaca_eval", "mt_bench", "multiple_choice", "oracle", "preference", "safety"]
