"""DSPA for few triples: rows drawn toward the mean, the percentile by budget, and latents whose scores are sure."""

import numpy as np
import pytest
import torch

import dspa.map.condiff
from dspa.map.artifact_map import ArtifactMap, MapOptions
from dspa.map.condiff import ConditionalDifferenceMap, budget_percentile
from dspa.method import DSPA
from dspa.steering import DSPASteering
from harness.method import BaseShape
from tests.unit.test_artifact_map import SELECTED
from tests.unit.test_dspa import PROMPTS, fit

N, D = 60, 30


def numbers(n: int = N, seed: int = 0):
    """Densities: some latents fire always (0), some in few triples (21, 22), one in none (23); and differences."""
    draw = torch.Generator().manual_seed(seed)
    rho = torch.rand(n, D, generator=draw).mul(5).floor() / 5 * (torch.rand(n, D, generator=draw) < 0.6)
    rho[:, 0] = 0.5
    for latent, count in ((21, 3), (22, 1), (23, 0)):
        rho[:, latent] *= torch.arange(n) < count
    delta = torch.randn(n, D, generator=draw).mul(8).round() / 40 + torch.linspace(-0.1, 0.1, D)
    return rho, delta


def shrunk(rho, delta, percentile: float, shrink: float) -> np.ndarray:
    """The rows by their definition."""
    rho, delta = rho.double().numpy(), delta.double().numpy()
    rows = np.zeros((D, D))
    for i in range(D):
        opened = (rho[:, i] >= np.percentile(rho[:, i], percentile)) & (rho[:, i] > 0)
        rows[i] = (delta[opened].sum(0) + shrink * delta.mean(0)) / (opened.sum() + shrink)
    return rows


def estimate(rho, delta, **options) -> ConditionalDifferenceMap:
    return ConditionalDifferenceMap.estimate(rho, delta, gate="strict", **options)


@pytest.mark.parametrize("n", [N, 200], ids=["few triples", "many"])
@pytest.mark.parametrize("percentile", [0.0, 60.0, 95.0])
@pytest.mark.parametrize("shrink", [0.5, 5.0, 100.0])
def test_a_shrunk_map_is_the_dense_one_whatever_it_is_asked(n, percentile, shrink, monkeypatch):
    monkeypatch.setattr(dspa.map.condiff, "BLOCK_NUMBERS", 100)  # several blocks
    rho, delta = numbers(n)
    ours, dense = estimate(rho, delta, percentile=percentile, shrink=shrink), shrunk(rho, delta, percentile, shrink)
    for amap in (ours, ConditionalDifferenceMap.restore(ours.tensors())):
        np.testing.assert_allclose(amap.dense().numpy(), dense, atol=1e-6)
        np.testing.assert_allclose(amap.column_sums.numpy(), dense.sum(0), atol=1e-5)
        expected = np.stack([dense[[i for i in row if i >= 0]].sum(0) for row in SELECTED.tolist()])
        np.testing.assert_allclose(amap.scores(SELECTED).numpy(), expected, atol=1e-5)
        whole = amap.truncate(D).scores(torch.arange(D)[:, None])
        np.testing.assert_allclose(whole.numpy(), dense, atol=1e-6)
        ends = amap.truncate(3).scores(torch.arange(D)[:, None]).numpy()
        assert (ends != 0).sum() == 6 * D
        np.testing.assert_allclose(ends[ends != 0], dense[ends != 0], atol=1e-6)


def test_a_row_without_support_is_the_global_mean_and_an_always_open_one_too():
    rho, delta = numbers()
    ours = estimate(rho, delta, shrink=5.0)
    for latent in (0, 23):
        torch.testing.assert_close(ours.dense()[latent], delta.mean(0))
    assert ours.support[[0, 23]].tolist() == [N, 0]
    plain = estimate(rho, delta)
    assert not plain.dense()[[21, 22, 23]].any()
    assert "shrink" not in plain.tensors(), "a map of before has the same tensors"


def test_shrink_zero_is_the_map_of_before_and_much_of_it_is_the_mean():
    rho, delta = numbers()
    near, far = (estimate(rho, delta, min_support=1, shrink=shrink).dense() for shrink in (1e-6, 1e7))
    supported = estimate(rho, delta, min_support=1)
    torch.testing.assert_close(near[supported.support > 0], supported.dense()[supported.support > 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(far, delta.mean(0).expand(D, -1), atol=1e-5, rtol=0)


def test_no_large_tensor_is_made_for_131072_latents_that_never_fire():
    from tests.unit.tensor_sizes import LargestTensor

    draw, width = torch.Generator().manual_seed(0), 1 << 17
    rho, delta = (torch.zeros(20, width) for _ in range(2))
    columns = torch.randperm(width, generator=draw)[:200]
    rho[:, columns] = torch.rand(20, 200, generator=draw)
    delta[:, columns] = torch.randn(20, 200, generator=draw)
    with LargestTensor() as seen:
        kept = estimate(rho, delta, shrink=5.0).truncate(16)
    assert seen.largest <= 1 << 24
    scores = kept.scores(torch.tensor([[int(columns[0])], [1 if 1 not in columns else 2]]))
    assert ((scores != 0).sum(1) == 32).all()


def test_the_percentile_by_budget_leaves_three_times_the_support_or_is_the_papers():
    for n, m in ((16, 5), (25, 5), (50, 5), (100, 5), (280, 5), (40, 2)):
        percentile = budget_percentile(n, m)
        density = torch.rand(n, 1, generator=torch.Generator().manual_seed(n)) + 0.1
        opened = estimate(density, density, percentile=percentile, min_support=m).support
        assert percentile < 95
        assert int(opened) == 3 * m, (n, m)
    assert budget_percentile(15, 5) == budget_percentile(4, 5) == 0.0
    assert budget_percentile(300, 5) == budget_percentile(61_000, 5) == 95.0


@pytest.mark.parametrize("options", [{}, {"shrink": 4.0}, {"gate": "paper"}], ids=str)
def test_the_jackknifes_interval_is_the_bootstraps(options):
    rho, delta = numbers(400, seed=1)
    full = ConditionalDifferenceMap.estimate(rho, delta, percentile=60.0, **({"gate": "strict"} | options))
    shipped = ArtifactMap.build(full, MapOptions())
    columns = torch.arange(D).expand(len(SELECTED), -1)
    interval = shipped.interval(SELECTED, columns, n_resamples=4000)
    assert interval is not None
    scores, spreads = zip(*(full.spread(row[row >= 0], torch.arange(D)) for row in SELECTED), strict=True)
    torch.testing.assert_close(torch.stack(scores), full.scores(SELECTED), atol=1e-5, rtol=1e-4)
    low, high = interval
    ratio = torch.stack(spreads)[:2] * 2 * 1.96 / (high - low)[:2]
    assert 0.93 < float(ratio.min()) <= float(ratio.max()) < 1.07
    assert not torch.stack(spreads)[2].any(), "no latents, no score"
    sign = torch.stack(scores).sign()
    agree = shipped.sure(SELECTED, columns, sign) == torch.where(sign > 0, low > 0, (high < 0) & (sign < 0))
    assert agree.float().mean() > 0.96
    assert not shipped.sure(SELECTED, columns, -sign).any()


def test_only_sure_latents_are_edited(tiny_base, triples, sae_refs):
    base = tiny_base("gemma2")
    every, sure = (fit(base, triples, sae_refs, sure_only=sure, min_support=5) for sure in (False, True))
    sae, rows = every.intervention.saes[0], torch.randn(6, 9, 32, generator=torch.Generator().manual_seed(0)) * 2
    mask = torch.ones(6, 9, dtype=torch.bool)
    before, after = (model.intervention.select(rows, mask) for model in (every, sure))
    interval = every.intervention.condition_map.interval(before.gates, before.latents, n_resamples=2000)
    assert interval is not None
    kept = after.latents >= 0
    assert torch.equal(after.latents[kept], before.latents[kept])
    assert torch.equal(after.sign != 0, kept)
    certain = (interval[1] < 0) & (before.latents >= 0)
    assert 0 < int(kept.sum()) < int((before.latents >= 0).sum())
    assert (certain == kept)[before.latents >= 0].float().mean() > 0.9
    assert sae.d_sae > 0
    assert every.fingerprint != sure.fingerprint
    assert sure.generate(PROMPTS, max_new_tokens=4)


def test_twenty_five_triples_are_enough_for_a_map_by_either_option(tiny_base, triples, sae_refs, tmp_path):
    base = tiny_base("llama")
    options = {"percentile": 95.0, "min_support": 5, "condition": "last_turn"}

    def rows(aligned) -> int:
        return int(aligned.intervention.condition_map.truncated.values.any(1).sum())

    few = rows(fit(base, triples, sae_refs, **options))
    for more in ({"percentile": "by_budget"}, {"shrink": 4.0}, {"percentile": "by_budget", "shrink": 2.0}):
        fitted = fit(base, triples, sae_refs, **(options | more))
        assert rows(fitted) > 3 * few
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        fitted.save(folder)
        loaded = type(fitted).load(folder)
        assert isinstance(loaded.intervention, DSPASteering)
        assert loaded.generate(PROMPTS, max_new_tokens=4) == fitted.generate(PROMPTS, max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shrink": 2.0, "gate": "paper"}, "set gate: strict"),
        ({"shrink": 2.0, "gate": "strict", "demix": True}, "demix weighs the rows"),
        ({"shrink": 2.0, "gate": "strict", "min_support": 3}, "leave min_support at 5"),
        ({"sure_only": True, "keep_factors": False}, "keep_factors: true"),
        ({"sure_only": True, "demix": True}, "demix: false"),
    ],
    ids=str,
)
def test_options_that_cannot_work_or_that_nothing_reads_are_refused(sae_refs, options, said):
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], **options)
    with pytest.raises(ValueError, match=said):
        method.check(BaseShape(name="tiny", n_layers=4, d_model=32, model_type="llama"))


def test_a_map_says_what_is_wrong_with_its_shrinkage():
    rho, delta = numbers()
    with pytest.raises(ValueError, match="from 0 on"):
        estimate(rho, delta, shrink=-1.0)
    with pytest.raises(ValueError, match="gate 'strict'"):
        ConditionalDifferenceMap.estimate(rho, delta, shrink=1.0)
    shipped = ArtifactMap.build(estimate(rho, delta), MapOptions(keep_factors=False))
    with pytest.raises(ValueError, match="no interval"):
        shipped.sure(SELECTED, SELECTED, torch.ones(SELECTED.shape))
