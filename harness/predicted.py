"""What methods predict their bills with: the passes they make over triples, priced by an architecture's rates."""

from collections.abc import Sequence

from harness.compute.rates import Rates
from harness.residuals import TripleIds, batches_by_length


def residual_flops(encoded: Sequence[TripleIds], *, last_layer: int, rates: Rates, batch_size: int) -> int:
    """FLOPs of `harness.residuals.triple_residuals` over all triples, for layers up to ``last_layer``."""
    body, total = rates.body(last_layer + 1), 0
    for rows in batches_by_length(encoded, batch_size):
        prompt = max(len(encoded[r].prompt) for r in rows)
        answer = max(max(len(encoded[r].chosen), len(encoded[r].rejected)) for r in rows)
        total += body.of(len(rows), prompt) + body.of(2 * len(rows), answer, past=prompt)
    return total
