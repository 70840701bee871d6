"""What DSPA's fit, and that of other methods on SAE densities, is going to cost."""

from collections.abc import Sequence

from dspa.density import CALIBRATION
from dspa.saes.sae import norm_multiple, sae_sizes
from harness.compute.rates import Rates
from harness.model import AlignedModel
from harness.predicted import residual_flops
from harness.preferences import Triple
from harness.refs import SAERef
from harness.residuals import encode_triples


def predict_densities(
    base: AlignedModel,
    triples: Sequence[Triple],
    *,
    input_sae: SAERef | None,
    output_sae: SAERef,
    rates: Rates,
    batch_size: int,
) -> int:
    """FLOPs that `measure_densities` is going to execute, if no token is left out for its norm."""
    encoded = encode_triples(base, triples)
    special = set(base.chat.special_ids)

    def counted(*texts: Sequence[int]) -> int:
        return sum(token not in special for text in texts for token in text)

    refs = [ref for ref in (input_sae, output_sae) if ref is not None]
    sizes = {str(ref): sae_sizes(ref) for ref in refs}
    last = max(layer for layer, _, _ in sizes.values())
    total = residual_flops(encoded, last_layer=last, rates=rates, batch_size=batch_size)
    filtered = [sizes[str(ref)][0] for ref in refs if norm_multiple(ref) is not None]
    if filtered:
        total += residual_flops(encoded[:CALIBRATION], last_layer=max(filtered), rates=rates, batch_size=batch_size)
    answers = sum(counted(one.chosen, one.rejected) for one in encoded)
    _, d_model, d_sae = sizes[str(output_sae)]
    total += 2 * d_model * d_sae * answers
    if input_sae is not None:
        _, d_model, d_sae = sizes[str(input_sae)]
        total += 2 * d_model * d_sae * sum(counted(one.prompt) for one in encoded)
    return total
