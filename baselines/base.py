"""base: the untouched model, the reference line of every comparison."""

from collections.abc import Sequence
from typing import ClassVar

from harness.compute import Meter
from harness.data.triples import Triple
from harness.method import MethodConfig, register_method
from harness.model.aligned import AlignedModel


@register_method("base")
class Base(MethodConfig):
    """No alignment at all."""

    uses_triples: ClassVar[bool] = False

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """The base itself; nothing is billed."""
        return base.derive(method="base", params={})
