"""Registers the benchmarks and the sandbox's judge; apart from tasks/__init__, which `tasks.commands` loads at once."""

from tasks import alpaca_eval, answers, mt_bench, multiple_choice, preference, safety
from tasks.sandbox import oracle

__all__ = ["alpaca_eval", "answers", "mt_bench", "multiple_choice", "oracle", "preference", "safety"]
