"""What an alignment cost: executed, formula and paper FLOPs, seconds, peak memory, tokens, parameters.

What needs torch is imported when it is asked for, so that a bill can be read without it.
"""

from typing import TYPE_CHECKING, Any

from harness.compute.bill import Bill, OperatorRow, StageBill
from harness.compute.formulas import forward_flops, paper_flops, train_flops

if TYPE_CHECKING:
    from harness.compute.meter import Meter
    from harness.compute.shapes import count_flops, signature_of

__all__ = [
    "Bill",
    "Meter",
    "OperatorRow",
    "StageBill",
    "count_flops",
    "forward_flops",
    "paper_flops",
    "signature_of",
    "train_flops",
]

_WITH_TORCH = {
    "Meter": "harness.compute.meter",
    "count_flops": "harness.compute.shapes",
    "signature_of": "harness.compute.shapes",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WITH_TORCH[name]), name)
