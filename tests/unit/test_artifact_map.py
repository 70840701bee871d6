"""What an artifact's map answers, against the definitions worked out in loops."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from dspa.map.artifact_map import ArtifactMap, MapOptions
from dspa.map.condiff import ConditionalDifferenceMap, TruncatedMap
from dspa.method import DSPA
from harness.method import BaseShape

N, D = 60, 30
SELECTED = torch.tensor([[0, 7, 3, 21], [4, -1, 9, -1], [-1, -1, -1, -1]])


def fitted(gate: str = "strict", seed: int = 0) -> ConditionalDifferenceMap:
    draw = torch.Generator().manual_seed(seed)
    rho = torch.rand(N, D, generator=draw).mul(5).floor() / 5 * (torch.rand(N, D, generator=draw) < 0.6)
    rho[:, 21] *= torch.arange(N) < 3  # too rare for the strict gate
    delta = torch.randn(N, D, generator=draw).mul(8).round() / 40 + torch.linspace(-0.1, 0.1, D)
    return ConditionalDifferenceMap.estimate(rho, delta, percentile=60.0, gate=gate, min_support=5)


def density() -> torch.Tensor:
    return torch.rand(len(SELECTED), D, generator=torch.Generator().manual_seed(9)).round(decimals=1)


def gates_of(full: ConditionalDifferenceMap) -> np.ndarray:
    return full.open_gates(torch.arange(D)).double().numpy().T


def deltas_of(full: ConditionalDifferenceMap) -> np.ndarray:
    return full.differences(torch.arange(D)).double().numpy().T


@pytest.mark.parametrize("gate", ["paper", "strict"])
def test_exact_scores_are_those_of_the_full_map_and_truncated_ones_those_of_the_kept_entries(gate):
    full = fitted(gate)
    exact = ArtifactMap.build(full, MapOptions(truncate=None)).scores(SELECTED, density())
    torch.testing.assert_close(exact, full.scores(SELECTED))
    kept = ArtifactMap.build(full, MapOptions(truncate=3, keep_factors=False)).scores(SELECTED, density())
    expected = torch.zeros_like(kept)
    for row, latents in enumerate(SELECTED.tolist()):
        for a in full.dense()[[i for i in latents if i >= 0]]:
            ends = torch.cat([a.argsort()[:3], a.argsort()[-3:]])
            expected[row, ends] += a[ends]
    torch.testing.assert_close(kept, expected)


@pytest.mark.parametrize("gate", ["paper", "strict"])
@pytest.mark.parametrize("truncate", [None, D], ids=["factored", "all entries"])
def test_demixed_scores_follow_the_formula_on_the_supported_latents(gate, truncate):
    full, ridge = fitted(gate), 0.01
    shipped = ArtifactMap.build(full, MapOptions(truncate=truncate, demix=True, demix_ridge=ridge))
    ours = shipped.scores(SELECTED, density()).numpy()
    g, delta = gates_of(full), deltas_of(full)
    for row, latents in enumerate(SELECTED.tolist()):
        s = [i for i in latents if i >= 0 and full.row_scale[i] > 0]
        opened = (density()[row, s] >= full.threshold[s]) & ((density()[row, s] > 0) | (gate == "paper"))
        moments = g[:, s].T @ g[:, s] / N + ridge * np.eye(len(s))
        unnormalised = g[:, s].T @ delta / N
        expected = unnormalised.T @ np.linalg.solve(moments, opened.double().numpy())
        np.testing.assert_allclose(ours[row], expected, atol=1e-5)


@pytest.mark.parametrize("gate", ["paper", "strict"])
def test_intervals_are_quantiles_of_the_scores_of_maps_refitted_on_drawn_triples(gate):
    full = fitted(gate)
    shipped = ArtifactMap.build(full, MapOptions())
    columns = torch.tensor([[2, 29, -1], [0, 1, 2], [5, 6, 7]])
    low, high = shipped.interval(SELECTED, columns, n_resamples=200, seed=4, level=0.8)
    drawn = torch.randint(N, (200, N), generator=torch.Generator().manual_seed(4)).numpy()
    g, delta = gates_of(full), deltas_of(full)
    for row, latents in enumerate(SELECTED.tolist()):
        s = [i for i in latents if i >= 0 and full.row_scale[i] > 0]
        for place, j in enumerate(columns[row].tolist()):
            if j < 0:
                assert torch.isnan(low[row, place]) and torch.isnan(high[row, place])
                continue
            scores = []
            for triples in drawn:
                sums = g[triples][:, s].T @ delta[triples, j]
                scores.append((sums / (g[triples][:, s].sum(0) if gate == "strict" else N)).sum())
            expected = np.quantile(scores, [0.1, 0.9])
            np.testing.assert_allclose([low[row, place], high[row, place]], expected, atol=1e-5)
    assert (low[0, :2] < shipped.factors.scores(SELECTED)[0, [2, 29]]).all()


def test_scores_of_the_same_numbers_tie_whatever_the_order_they_are_added_in():
    columns, tiny = torch.tensor([[0, 1]] * 3, dtype=torch.int32), 2.0**-24
    values = torch.tensor([[1.0, -1.0], [tiny, tiny], [-1.0, 1.0]])  # in float32 the first column sums to 0
    assert TruncatedMap(columns, values, 2).scores(torch.tensor([[0, 1, 2]])).tolist() == [[tiny, tiny]]


def test_an_interval_needs_the_factors_and_says_nothing_of_demixed_scores():
    for options in (MapOptions(keep_factors=False), MapOptions(demix=True)):
        assert ArtifactMap.build(fitted(), options).interval(SELECTED, SELECTED) is None


def test_candidates_are_the_ends_of_the_column_sums_of_the_full_map():
    full = fitted()
    augment, ablate = ArtifactMap.build(full, MapOptions(truncate=1, keep_factors=False)).candidates(4)
    order = full.dense().sum(0).argsort().tolist()
    assert augment.tolist() == order[::-1][:4]
    assert ablate.tolist() == order[:4]


@pytest.mark.parametrize(
    "options",
    [
        MapOptions(truncate=5),
        MapOptions(truncate=None),
        MapOptions(truncate=4, keep_factors=False),
        MapOptions(demix=True),
    ],
    ids=str,
)
def test_a_shipped_map_comes_back_from_tensors_and_json(options):
    shipped = ArtifactMap.build(fitted(), options)
    again = ArtifactMap.restore(shipped.tensors(), MapOptions(**json.loads(json.dumps(asdict(shipped.settings)))))
    assert again.settings == options
    assert torch.equal(again.scores(SELECTED, density()), shipped.scores(SELECTED, density()))
    assert again.tensors().keys() == shipped.tensors().keys()
    assert all(torch.equal(tensor, shipped.tensors()[name]) for name, tensor in again.tensors().items())
    assert (again.n_triples, again.d_sae) == (N, D)
    assert torch.equal(again.support, fitted().support)


def test_an_artifact_with_damaged_factors_is_refused_when_they_are_needed():
    shipped = ArtifactMap.build(fitted(), MapOptions(truncate=None))
    tensors = shipped.tensors()
    del tensors["factors.difference.length"]
    with pytest.raises(ValueError, match="tensor 'length' is missing"):
        ArtifactMap.restore(tensors, shipped.settings).scores(SELECTED, density())


def test_options_that_make_no_sense_together_are_refused_before_any_work(sae_refs):
    base = BaseShape("tiny", n_layers=4, d_model=32)
    for options, message in (
        ({"truncate": None, "keep_factors": False}, "keep_factors: false leaves nothing"),
        ({"demix": True, "keep_factors": False}, "demix needs the gates of the triples"),
    ):
        with pytest.raises(ValueError, match=message):
            DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], **options).check(base)
    for options in ({"truncate": 0}, {"demix_ridge": 0.0}):
        with pytest.raises(ValueError, match="greater than"):
            DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], **options)


@pytest.mark.parametrize("options", [{"demix": True}, {"truncate": None}, {"keep_factors": False}])
def test_every_variant_fits_generates_and_comes_back(tiny_base, triples, sae_refs, tmp_path, options):
    from harness.compute import Meter
    from harness.model.aligned import AlignedModel

    base = tiny_base("gemma2")
    method = DSPA(
        input_sae=sae_refs[0], output_sae=sae_refs[1], gate="strict", percentile=50.0, min_support=1, **options
    )
    aligned = method.fit(base, triples, meter=Meter(base.model), seed=0)
    prompts = [triple.prompt for triple in triples[:4]]
    answers = aligned.generate(prompts, max_new_tokens=6)
    aligned.save(tmp_path / "artifact")
    assert AlignedModel.load(tmp_path / "artifact").generate(prompts, max_new_tokens=6) == answers
