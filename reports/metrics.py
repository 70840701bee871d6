"""What the tables and figures need to know of a metric: its title, its unit, and which way is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """``name`` is the column in comparison.csv; values are in ``unit``, and below 0 only where ``signed``."""

    name: str
    title: str
    unit: str
    higher_is_better: bool = True
    digits: int = 1
    signed: bool = False

    def better(self, a: float, b: float) -> bool:
        """Whether the value ``a`` is better than ``b``."""
        return a > b if self.higher_is_better else a < b

    @property
    def least_span(self) -> float:
        """The least range of values worth filling a plot with."""
        return 50 * 10.0**-self.digits


_KNOWN = {
    metric.name: metric
    for metric in (
        Metric("mt_bench", "MT-Bench", "rating 1-10", digits=2),
        Metric("mt_bench_win", "MT-Bench win rate", "%"),
        Metric("alpaca_eval", "AlpacaEval win rate", "%"),
        Metric("alpaca_eval_lc", "AlpacaEval length-controlled win rate", "%"),
        Metric("safety_rate", "Safety rate", "%"),
        Metric("over_refusal", "Over-refusal", "%", higher_is_better=False),
        Metric("preference_accuracy", "Preference accuracy", "%"),
        Metric("preference_margin", "Preference margin", "nats per token", digits=3, signed=True),
    )
}


def metric(name: str) -> Metric:
    """The metric called ``name``; one that is not in the list is an lm-eval task: accuracy in percent."""
    return _KNOWN.get(name) or Metric(name, name, "accuracy, %")
