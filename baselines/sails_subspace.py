"""The subspace that sails starts in: SAE features by how chosen and rejected answers differ, and the LoRA put there."""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from baselines.metered import measured_batches
from dspa.saes.encoder import token_blocks
from dspa.saes.sae import ResidualSAE
from harness.compute import Meter
from harness.intervention import find_decoder
from harness.model import AlignedModel
from harness.preferences import Triple
from harness.residuals import encode_triples, triple_residuals


@torch.no_grad()
def activation_differences(
    base: AlignedModel, triples: Sequence[Triple], saes: Sequence[ResidualSAE], *, meter: Meter, batch_size: int
) -> tuple[dict[int, Float[Tensor, " d_sae"]], int]:
    """({layer of an SAE: |E_chosen[a] - E_rejected[a]| of each feature}, number of triples measured); on the CPU.

    E is the mean activation over all tokens of the answers, without special ones. The prompt is passed once and its
    KV cache serves both answers, up to the deepest SAE layer. With a FLOP limit only the first triples are measured
    (see `measured_batches`).
    """
    encoded = encode_triples(base, triples)
    layers = {sae.layer for sae in saes}
    sums = {sae.layer: torch.zeros(2, sae.d_sae, dtype=torch.float64) for sae in saes}
    n_tokens, n_triples = torch.zeros(2, dtype=torch.float64), 0
    for rows in measured_batches(list(map(len, encoded)), batch_size, meter):
        _, answers = triple_residuals(base, [encoded[row] for row in rows], set(), layers, meter)
        for sae in saes:
            residual = answers.residual[sae.layer]
            tokens = [residual[kind::2][answers.counted[kind::2]] for kind in (0, 1)]  # rows: chosen, rejected, ...
            with meter.step(("encode", sae.layer, sum(map(len, tokens))), tokens=0, kind="forward"):
                sums[sae.layer] += torch.stack([_sum_of_latents(sae, of_kind) for of_kind in tokens]).cpu()
        n_tokens += torch.stack([answers.counted[kind::2].sum() for kind in (0, 1)]).cpu()
        n_triples += len(rows)
    means = {layer: total / n_tokens.clamp(min=1)[:, None] for layer, total in sums.items()}
    return {layer: (mean[0] - mean[1]).abs().float() for layer, mean in means.items()}, n_triples


def principal_directions(
    decoder: Float[Tensor, "d_sae d_model"], scores: Float[Tensor, " d_sae"], *, k: int, variance: float
) -> Float[Tensor, "n d_model"]:
    """Principal directions (fp64), leading one first, of the decoder rows of the ``k`` features with largest scores.

    As few as hold the share ``variance`` of the centred rows' variance. Of equal scores the first features are taken,
    and none with score 0; raises ValueError when fewer than two are left.
    """
    chosen = scores.argsort(descending=True, stable=True)[:k]
    chosen = chosen[scores[chosen] > 0]
    if len(chosen) < 2:
        raise ValueError(
            f"sails: {len(chosen)} SAE features differ between chosen and rejected answers, too few to span a "
            "subspace; give more triples or another SAE"
        )
    rows = decoder[chosen.to(decoder.device)].cpu().double()
    _, singular, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    held = singular.square().cumsum(0) / singular.square().sum()
    return directions[: int((held < variance).sum()) + 1]  # a slice: rounding can leave the last share below 1


def orthonormal_basis(
    directions: Float[Tensor, "n d_model"], rank: int, draw: torch.Generator
) -> Float[Tensor, "d_model rank"]:
    """Q of the QR decomposition of the first ``rank`` directions and, where there are fewer, random ones after them."""
    n, d_model = directions.shape
    random = torch.randn(d_model, max(rank - n, 0), dtype=torch.float64, generator=draw)
    return torch.linalg.qr(torch.cat([directions[:rank].T, random], dim=1)).Q.float()


@torch.no_grad()
def start_lora(model: nn.Module, bases: Mapping[int, Float[Tensor, "d_model rank"]], writers: Collection[str]) -> None:
    """Overwrite the start of a PEFT model's LoRA with the bases (by SAE layer) nearest to its modules' layers.

    Modules called as in ``writers``, which write the residual stream, get B = Q and A = 0, all others, which read it,
    A = Q^T and B = 0.
    """
    from peft.tuners.lora import LoraLayer

    for layer, block in enumerate(find_decoder(model).layers):
        basis = bases[nearest(bases, layer)]
        for name, module in block.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            a, b = (block.get_parameter(f"{name}.lora_{matrix}.default.weight") for matrix in "AB")
            if name.rpartition(".")[2] in writers:
                a.zero_()
                b.copy_(basis)
            else:
                a.copy_(basis.T)
                b.zero_()


def nearest(layers: Collection[int], layer: int) -> int:
    """The one of ``layers`` that is nearest to ``layer``; of two, the earlier."""
    return min(layers, key=lambda other: (abs(other - layer), other))


def _sum_of_latents(sae: ResidualSAE, residual: Float[Tensor, "token d_model"]) -> Float[Tensor, " d_sae"]:
    """Sum of the activations over tokens, in blocks that hold no more than the SAE's own."""
    blocks = token_blocks(residual, sae.d_sae)
    return torch.stack([sae.encode(block).sum(0, dtype=torch.float64) for block in blocks]).sum(0)
