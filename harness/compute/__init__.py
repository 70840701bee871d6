"""What an alignment cost: executed, formula and paper FLOPs, seconds, peak memory, tokens, parameters.

What needs torch is imported when it is asked for, so that a bill can be read without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.compute.bill import Bill, paper_flops

if TYPE_CHECKING:
    from harness.compute.flops import count_flops, signature_of
    from harness.compute.meter import Meter

__all__ = ["Bill", "Meter", "count_flops", "paper_flops", "signature_of"]
_MODULES = {"Meter": "meter", "count_flops": "flops", "signature_of": "flops"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
