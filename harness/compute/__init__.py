"""What an alignment cost: executed, formula and paper FLOPs, seconds, peak memory, tokens, parameters."""

from harness.compute.bill import Bill, OperatorRow, StageBill
from harness.compute.formulas import forward_flops, paper_flops, train_flops
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
