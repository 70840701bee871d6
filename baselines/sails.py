"""sails: a LoRA that starts in the subspace of the SAE features in which chosen and rejected answers differ."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from baselines.metered import collected, measured_batches
from baselines.rows import answer_rows
from baselines.sft import supervised_flops, train_on_answers
from baselines.training import TrainedMethod
from dspa.density import norm_limits, norm_limits_flops
from dspa.saes.encoder import token_blocks
from dspa.saes.sae import ResidualSAE, check_sae, load_sae, sae_sizes
from harness.compute import Meter
from harness.compute.rates import Rates
from harness.data.refs import SAERef
from harness.data.triples import Triple
from harness.method import BaseShape, register_method
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from harness.model.residuals import encode_triples, residual_flops, triple_residuals

READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # modules whose input is the residual stream
WRITERS = ("o_proj", "down_proj")  # modules whose output goes there


@torch.no_grad()
def activation_differences(
    base: AlignedModel, triples: Sequence[Triple], saes: Sequence[ResidualSAE], *, meter: Meter, batch_size: int
) -> tuple[dict[int, Float[Tensor, " d_sae"]], int]:
    """({layer of an SAE: |E_chosen[a] - E_rejected[a]| of each feature}, number of triples measured); on the CPU.

    E is the mean activation over all tokens of the answers, without special ones and without those of large norm where
    an SAE was trained without them. The prompt is passed once and its KV cache serves both answers, up to the deepest
    SAE layer. With a FLOP limit only the first triples are measured (see `measured_batches`).
    """
    encoded = encode_triples(base, triples)
    limits = norm_limits(base, encoded, saes, meter=meter, batch_size=batch_size)
    parts: list[tuple[int, dict[int, Tensor], dict[int, Tensor]]] = []  # triples, sums and tokens of a batch
    for rows in measured_batches(list(map(len, encoded)), batch_size, meter):
        layers = {sae.layer for sae in saes}
        _, answers = triple_residuals(base, [encoded[row] for row in rows], set(), layers, meter)
        sums, n_tokens = {}, {}
        for sae, limit in zip(saes, limits, strict=True):
            residual = answers.residual[sae.layer]
            counted = answers.counted & sae.fits_norm(residual, limit)
            tokens = [residual[kind::2][counted[kind::2]] for kind in (0, 1)]  # rows: chosen, rejected, ...
            with meter.step(("encode", sae.layer, sum(map(len, tokens))), tokens=0, kind="forward"):
                sums[sae.layer] = torch.stack([_sum_of_latents(sae, of_kind) for of_kind in tokens]).cpu()
            n_tokens[sae.layer] = torch.tensor([len(of_kind) for of_kind in tokens], dtype=torch.float64)
        parts.append((len(rows), sums, n_tokens))
    parts, scores = collected(parts, meter), {}
    for layer in (sae.layer for sae in saes):
        total = sum((sums[layer] for _, sums, _ in parts), torch.zeros(()))
        count = sum((n_tokens[layer] for _, _, n_tokens in parts), torch.zeros(()))
        mean = total / count.clamp(min=1)[:, None]
        scores[layer] = (mean[0] - mean[1]).abs().float()
    return scores, sum(n for n, _, _ in parts)


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


@register_method("sails")
class SAILS(TrainedMethod):
    """arXiv 2512.23260: sft with a LoRA whose start an SAE gives; nothing holds it there.

    For each SAE, the ``k`` features whose mean activation differs most between chosen and rejected answers are taken,
    of their decoder rows as many principal directions as hold ``variance`` of the variance, and of those an orthonormal
    basis Q. Modules that read the residual stream start at A = Q^T, B = 0, those that write it at B = Q, A = 0, so the
    model starts as the base. Modules of a layer take the SAE nearest to it (of two, the earlier).

    The paper's: scores, PCA at 80 % of the variance, QR, a start and no constraint; its SAEs are of layers 5, 10, 15,
    20 (Gemma-2-2B) and 10, 15, 20, 25, 30 (9B). There is no official code. Ours are: rank 16 on q, k, v and o, which
    comes to the share of trained parameters it reports (0.244 % of 2B, 0.194 % of 9B); which matrix of a module is Q;
    lr 1e-4, 3 epochs, sft's cosine schedule; ``k``; lora_alpha 16, so that Q is not rescaled; the PCA of centred rows;
    means over all tokens of the answers, without their end of turn. More directions than the rank are cut to the
    leading ones; fewer are filled up with random ones at right angles, so that the number of trained parameters is
    always the rank's. The RMSNorm between the residual stream and the modules, which rescales its axes, is not undone.

    ``init`` also has the controls: ``random`` starts in random orthonormal bases, one for each SAE as well, ``plain``
    is PEFT's usual start. They are trained in the same way, and do not look for features.

    Under a FLOP limit the features are measured on the first triples until a quarter of the limit is used.
    """

    saes: Annotated[tuple[SAERef, ...], Field(min_length=1, description="of different layers")]
    init: Literal["sae", "plain", "random"] = Field(
        "sae", description="the adapter's start: from SAE features, PEFT's usual one, or random bases (controls)"
    )
    k: Annotated[int, Field(ge=2, description="features of each SAE")] = 32
    variance: Annotated[float, Field(gt=0, le=1, description="share that the principal directions hold")] = 0.8
    features_batch_size: Annotated[int, Field(ge=1, description="triples per forward while measuring features")] = 32

    tuning: Literal["lora"] = "lora"
    epochs: Annotated[float, Field(gt=0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"
    lora_rank: Annotated[int, Field(ge=1)] = 16
    lora_targets: str | list[str] = Field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])

    def check(self, base: BaseShape) -> None:
        """The SAEs must fit the base and be of different layers; the rank, ``k`` and the modules must be possible."""
        super().check(base)
        layers: list[int] = []
        for ref in self.saes:
            layer, d_sae = check_sae(ref, base)
            if self.k > d_sae:
                raise ValueError(f"sails: k is {self.k}, but SAE {ref} has {d_sae} features; give at most {d_sae}")
            if layer in layers:
                raise ValueError(f"sails: two SAEs are of layer {layer}; give one a layer")
            layers.append(layer)
        if self.lora_rank > base.d_model:
            raise ValueError(
                f"sails: lora_rank is {self.lora_rank}, but {base.name} has only {base.d_model} orthogonal directions "
                "(d_model); give at most as many"
            )
        known = READERS + WRITERS
        if isinstance(self.lora_targets, str) or not self.lora_targets or not set(self.lora_targets) <= set(known):
            raise ValueError(
                f"sails: lora_targets {self.lora_targets!r} must be a list of modules next to the residual stream: "
                f"{', '.join(known)}"
            )

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Train an adapter on the base; ``seed`` decides random directions, the order of the answers and dropout."""
        rows = answer_rows(base, triples)  # refuses what does not fit the context before anything is passed
        policy = self.policy(base, seed)
        found: dict[str, Any] = {}
        if self.init != "plain":
            directions, found = self._directions(base, triples, meter)
            draw = torch.Generator().manual_seed(seed)
            bases = {layer: orthonormal_basis(directions[layer], self.lora_rank, draw) for layer in sorted(directions)}
            start_lora(policy, bases, WRITERS)
        aligned = train_on_answers(self, base, rows, meter=meter, seed=seed, policy=policy)
        return aligned.derive(params={**aligned.params, **found})

    def predict(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> dict[str, int]:
        """Features from prompts and both answers, then epochs over prompts with the chosen ones."""
        features = {"features": self._predict_features(base, triples, rates)} if self.init == "sae" else {}
        return {**features, "train": supervised_flops(self, answer_rows(base, triples), rates)}

    def _directions(
        self, base: AlignedModel, triples: Sequence[Triple], meter: Meter
    ) -> tuple[dict[int, Float[Tensor, "n d_model"]], dict[str, Any]]:
        """Principal directions by SAE layer (none for random bases), and what the artifact keeps about them."""
        if self.init == "random":
            return {sae_sizes(ref)[0]: torch.zeros(0, sae_sizes(ref)[1], dtype=torch.float64) for ref in self.saes}, {}
        saes = [load_sae(ref, str(base.device)) for ref in self.saes]
        with meter.stage("features"):
            scores, n_measured = activation_differences(
                base, triples, saes, meter=meter, batch_size=self.features_batch_size
            )
            directions = {
                s.layer: principal_directions(s.encoder.decoder, scores[s.layer], k=self.k, variance=self.variance)
                for s in saes
            }
        kept = {str(layer): min(len(found), self.lora_rank) for layer, found in directions.items()}
        return directions, {"sae_directions": kept, "features_triples": n_measured}

    def _predict_features(self, base: AlignedModel, triples: Sequence[Triple], rates: Rates) -> int:
        encoded, special = encode_triples(base, triples), set(base.chat.special_ids)
        tokens = sum(token not in special for one in encoded for token in (*one.chosen, *one.rejected))
        sizes = [sae_sizes(ref) for ref in self.saes]
        last = max(layer for layer, _, _ in sizes)
        passed = residual_flops(encoded, last_layer=last, rates=rates, batch_size=self.features_batch_size)
        passed += norm_limits_flops(encoded, self.saes, rates=rates, batch_size=self.features_batch_size)
        return passed + sum(2 * d_model * d_sae * tokens for _, d_model, d_sae in sizes)
