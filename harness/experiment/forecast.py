"""The bill of a fit before it starts, from the base's configuration and the triples' token counts alone."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from harness.compute.rates import Rates
from harness.data.refs import ModelRef
from harness.data.triples import Budget, Triple
from harness.experiment.plan import cell_triples
from harness.experiment.suite import Suite
from harness.method import MethodConfig, Preview
from harness.model.aligned import AlignedModel
from harness.model.base import BaseModel
from harness.model.chat import ChatFormat
from harness.model.dequantised import source_of
from harness.model.pretrained import read_config, read_tokenizer
from harness.run_folder.plan import PlannedCell


@dataclass(frozen=True)
class Forecast:
    """What a fit is given and what it is expected to cost.

    ``stages`` maps stages to FLOPs; None for a method that predicts nothing, or whose passes cannot be priced.
    """

    budget: Budget | None
    stages: dict[str, int] | None

    @property
    def flops(self) -> int | None:
        return None if self.stages is None else sum(self.stages.values())


class Forecaster:
    """Forecasts fits on one base model; loads its configuration and tokenizer, never its weights."""

    def __init__(self, ref: ModelRef, *, device: str = "cpu") -> None:
        self._ref, self._device = ref, device

    def of(
        self,
        method: MethodConfig,
        budget: Budget | None,
        flops_limit: int | None = None,
        *,
        base: AlignedModel | None = None,
    ) -> Forecast:
        """The forecast of ``method`` on ``budget`` (None for a method without triples).

        Triples are tokenised by ``base``, that of the fit, where it is loaded anyway: what it has ``encoded`` is not
        tokenised again. Else the forecaster tokenises each triple once.

        Under a ``flops_limit`` a method that passes every triple once gets the largest beginning of ``budget`` whose
        predicted bill is within it; ValueError when not even one triple is. For any other method ``stages`` is then
        what its configured passes cost; it stops at the limit instead.
        """
        if budget is None:
            return Forecast(None, None)
        base, triples = base or self.base, budget.triples

        def stages(n: int) -> dict[str, int] | None:
            try:
                return method.predict(base, triples[:n], self.rates)
            except ValueError:  # what is wrong with the triples, the fit will say; what cannot be priced has no price
                return None

        def cost(n: int) -> int:
            return sum((stages(n) or {}).values())

        whole = stages(len(triples))
        if flops_limit is None or not method.single_pass or whole is None:
            return Forecast(budget, whole)
        if cost(1) > flops_limit:
            raise ValueError(
                f"a bill of {flops_limit:.3g} FLOPs does not pay for one triple of {method.name}, which takes "
                f"{cost(1):.3g}; give a larger bill in flops_budgets"
            )
        n = bisect_right(range(1, len(triples) + 1), flops_limit, key=cost)  # costs rise with n
        return Forecast(Budget(triples[:n], budget.seed), stages(n))

    def preview(self, method: MethodConfig, budget: Budget) -> Preview | None:
        """What ``method`` can measure on ``budget`` before it is fitted; None: nothing."""
        try:
            return method.preview(self.base, budget.triples, self.rates)
        except ValueError:  # what is wrong with the triples, the fit will say
            return None

    @property
    def fingerprint(self) -> str:
        """The base model's: it depends on its files, chat format and dtype, and not on what the weights are."""
        return self.base.fingerprint

    @cached_property
    def rates(self) -> Rates:
        """Those of the base's architecture."""
        config = read_config(source_of(self._ref), revision=self._ref.revision)
        return Rates(config, dtype=getattr(torch, self._ref.dtype), device=self._device)

    @cached_property
    def base(self) -> AlignedModel:
        """The base with its tokenizer and chat format, and no weights."""
        tokenizer = read_tokenizer(source_of(self._ref), revision=self._ref.revision)
        base = BaseModel(self._ref, self.rates.model, tokenizer, ChatFormat.of(tokenizer, self._ref.chat))
        return AlignedModel(base, self.rates.model, encoded={})


def check_bills(suite: Suite, cells: Sequence[PlannedCell], triples: Sequence[Triple], folder: Path) -> None:
    """Raise ValueError, before any work, for a bill that does not pay for a single triple of a cell's method.

    ``cells`` are those of the run in ``folder``.
    """
    bills = [cell for cell in cells if cell.flops_limit is not None]
    if not bills:
        return
    forecaster = Forecaster(suite.file.base, device=suite.file.execution.device)
    for cell in bills:
        drawn = cell_triples(suite, cell, triples)
        try:
            forecaster.of(suite.method_of(cell, folder), Budget(drawn.triples[:1], drawn.seed), cell.flops_limit)
        except ValueError as problem:
            raise suite.source.error(("flops_budgets",), str(problem)) from None
