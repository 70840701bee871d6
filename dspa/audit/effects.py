"""The effect of editing one output latent alone on a triple's preference margin: measured by forwards, and to first
order by gradient. The edit is the artifact's own: its alpha, scale, positions and norm limit, active tokens only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.attribution import latent_effects, margin_batches
from dspa.map.sparse import SparseRows
from dspa.steering import DSPASteering, Selection, SteeringSettings, latent_change
from harness.compute import Meter
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows
from harness.model.decoder import find_decoder
from harness.model.intervention import Mask, Residual, RowState
from harness.model.loglikelihood import score_group
from harness.model.residuals import TripleIds, batches_by_length, early_residuals
from harness.model.steering import Steering

ROWS = 32  # texts a forward
SIGNS = {"ablate": (-1.0,), "augment": (1.0,), "both": (-1.0, 1.0)}
"""Mode -> what may be done to a latent: -1 it is ablated, +1 augmented."""

Edit = tuple[int, int, float]
"""(triple, output latent, sign)"""


class OneLatentEach(DSPASteering):
    """The artifact's edit of one given latent for each row of the next prefill, whatever its prompt."""

    def __init__(self, steering: DSPASteering, latents: Sequence[int], signs: Sequence[float]) -> None:
        device = steering.condition_map.mean_difference.device
        super().__init__(steering.condition_map, steering.settings, str(device))
        self.read_layers = ()
        self._latents = torch.tensor([[latent] for latent in latents], device=device)
        self._signs = torch.tensor([[sign] for sign in signs], device=device)

    def condition(self, residual: Mapping[int, Residual], prompt: Mask, *, tally: object = None) -> RowState:
        """The given latents: nothing is read of the prompts."""
        seen = torch.zeros_like(self._latents[:, 0])
        return {**self._output.encoder.gather(self._latents), "sign": self._signs, "seen": seen}


def measure_margins(model: AlignedModel, encoded: Sequence[TripleIds]) -> list[float]:
    """log p(chosen) / tokens - log p(rejected) / tokens of each triple in the unsteered model."""
    requests = [request for one in encoded for request in _requests(model, one)]
    plain = model.derive(intervention=None).loglikelihood_tokens(requests, batch_size=2 * ROWS)
    return [_margin(plain[n : n + 2], requests[n : n + 2]) for n in range(0, len(requests), 2)]


def measure_edits(
    model: AlignedModel, encoded: Sequence[TripleIds], edits: Sequence[Edit], before: Sequence[float]
) -> list[float]:
    """Margin with each edit minus margin without (``before``, of every triple), by forwards through the edited model.

    A row of a forward is a triple's prompt with one edit, both answers follow on its cache.
    """
    steering = model.intervention
    assert isinstance(steering, DSPASteering)
    requests = [request for one in encoded for request in _requests(model, one)]
    found = [0.0] * len(edits)
    order = sorted(range(len(edits)), key=lambda i: (-len(encoded[edits[i][0]]), i))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        asked = [request for i in rows for request in requests[2 * edits[i][0] : 2 * edits[i][0] + 2]]
        group = [(tuple(asked[2 * place][0]), [2 * place, 2 * place + 1]) for place in range(len(rows))]
        one_each = OneLatentEach(steering, [edits[i][1] for i in rows], [edits[i][2] for i in rows])
        with _session(model, one_each) as session:
            scores = score_group(model.runtime, group, asked, session)
        for place, i in enumerate(rows):
            pair = [2 * place, 2 * place + 1]
            found[i] = _margin([scores[p] for p in pair], [asked[p] for p in pair]) - before[edits[i][0]]
    return found


def _session(model: AlignedModel, intervention: Any) -> Steering:
    session = replace(model.runtime, intervention=intervention).steering()
    assert isinstance(session, Steering)
    return session


def _requests(model: AlignedModel, one: TripleIds) -> list[tuple[list[int], list[int]]]:
    return [(list(one.prompt), [*answer, model.chat.end_id]) for answer in (one.chosen, one.rejected)]


def _margin(scores: Sequence[tuple[float, bool]], requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    chosen, rejected = (value / len(answer) for (value, _), (_, answer) in zip(scores, requests, strict=True))
    return chosen - rejected


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """Of every latent on every triple. ``effects``: sign -> [triple, d_sae], first-order effect on the margin of the
    edit with that sign; ``active``: [triple, d_sae], tokens that can be edited on which the latent fires;
    ``tokens``: [triple], how many of these tokens there are."""

    effects: Mapping[float, SparseRows]
    active: SparseRows
    tokens: Int[Tensor, " triple"]

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of all these tokens on which each latent fires."""
        return (self.active.weighted_sum() / self.tokens.sum().clamp(min=1)).float()


def first_order(model: AlignedModel, encoded: Sequence[TripleIds], signs: Sequence[float]) -> FirstOrder:
    """One backward pass for every triple serves all latents."""
    steering = model.intervention
    assert isinstance(steering, DSPASteering)
    settings, sae = steering.settings, steering.saes[1]
    order: list[int] = []
    parts: dict[float | None, list[SparseRows]] = {sign: [] for sign in (None, *signs)}
    tokens = torch.zeros(len(encoded), dtype=torch.long)
    meter = Meter(sample_profile=False)
    options = {"positions": settings.positions, "meter": meter, "batch_size": ROWS // 2}
    with meter.stage("attribution"):
        for rows, found in margin_batches(model.derive(intervention=None), encoded, sae.layer, **options):
            order += rows
            counted = found.steered & sae.fits_norm(found.residual, settings.norm_limits[1])
            row = counted.nonzero()[:, 0] // 2
            residual, gradient = found.residual[counted], found.gradient[counted]
            tokens[rows] = row.bincount(minlength=len(rows)).cpu()
            parts[None].append(SparseRows.from_dense(sae.encoder.counts(residual, row, len(rows))).to("cpu"))
            for sign in signs:
                effects = latent_effects(sae.encoder, residual, gradient, row, len(rows), _change(settings, sign))
                parts[sign].append(SparseRows.from_dense(effects).to("cpu"))
    back = torch.tensor(order, dtype=torch.long).argsort()
    whole = {sign: SparseRows.concatenate(rows, sae.d_sae).select(back) for sign, rows in parts.items()}
    return FirstOrder({sign: whole[sign] for sign in signs}, whole[None], tokens)


def _change(settings: SteeringSettings, sign: float):
    """What the artifact's edit with ``sign`` adds to each latent of a token, were it the only one edited."""

    def change(latents: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_sae"]:
        strongest = latents.amax(-1)[None].clamp(min=0) if settings.scale == "max" else None
        signs = torch.full_like(latents[:1], sign)
        return latent_change(latents[None], signs, strongest, latents[None] > 0, alpha=settings.alpha)[0]

    return change


@dataclass(frozen=True)
class SelectedLatents:
    """What the artifact would do for one triple's prompt: output latent -> sign, and s_j(x) of every latent."""

    signs: Mapping[int, float]
    scores: Float[Tensor, " d_sae"]


class _Recording(DSPASteering):
    """The artifact's steering, which keeps what it selected."""

    def __init__(self, steering: DSPASteering) -> None:
        device = steering.condition_map.mean_difference.device
        super().__init__(steering.condition_map, steering.settings, str(device), steering.bank)
        self.selection: Selection | None = None
        self.state: RowState = {}

    def select(self, residual: Residual, prompt: Mask) -> Selection:
        self.selection = super().select(residual, prompt)
        return self.selection

    def condition(self, residual: Mapping[int, Residual], prompt: Mask, *, tally: object = None) -> RowState:
        self.state = super().condition(residual, prompt)
        return self.state


@torch.no_grad()
def select_for(model: AlignedModel, encoded: Sequence[TripleIds]) -> list[SelectedLatents]:
    """The latents that steering edits for each triple's prompt, as its own session selects them."""
    steering, pad = model.intervention, model.chat.pad_id
    assert isinstance(steering, DSPASteering)
    decoder, found = find_decoder(model.model), {}
    for rows in batches_by_length(encoded, ROWS):
        recording = _Recording(steering)
        ids, mask = pad_rows([list(encoded[r].prompt) for r in rows], pad, side="right", device=model.device)
        with _session(model, recording):
            early_residuals(decoder, set(recording.read_layers), ids, mask)
        selection, state = recording.selection, recording.state
        assert selection is not None
        for place, r in enumerate(rows):
            latents, signs = state["latents"][place].tolist(), state["sign"][place].tolist()
            chosen = {latent: sign for latent, sign in zip(latents, signs, strict=True) if sign}
            found[r] = SelectedLatents(chosen, selection.scores[place].cpu())
    return [found[r] for r in range(len(encoded))]
