"""Registers the benchmarks and judges of tasks; apart from tasks/__init__, which `tasks.commands` loads at once."""

from tasks import alpaca_eval, answers, lm_eval, mt_bench, multiple_choice, preference, safety
from tasks.formats import verifiable
from tasks.sandbox import oracle

__all__ = [
    "alpaca_eval",
    "answers",
    "lm_eval",
    "mt_bench",
    "multiple_choice",
    "oracle",
    "preference",
    "safety",
    "verifiable",
]
