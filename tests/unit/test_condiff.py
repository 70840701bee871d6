import numpy as np
import pytest
import torch

from dspa.condiff import ConditionalDifferenceMap, TruncatedMap
from tests.reference import dense_map

N, D = 40, 25


def densities(seed: int):
    """Prompt densities with ties and rare latents (some fire on one prompt, some never), and differences."""
    draw = np.random.default_rng(seed)
    rho = draw.integers(0, 4, (N, D)) / 4.0
    rho[:, 5:15] *= draw.random((N, 10)) < 0.08
    rho[:, 15] = 0
    delta = np.round(draw.normal(0, 0.2, (N, D)), 1)
    return rho, delta


def estimate(rho, delta, **options):
    return ConditionalDifferenceMap.estimate(torch.tensor(rho).float(), torch.tensor(delta).float(), **options)


@pytest.mark.parametrize("gate", ["paper", "strict"])
@pytest.mark.parametrize("percentile", [0.0, 50.0, 95.0, 100.0])
def test_the_factored_map_equals_a_brute_force_dense_one(gate, percentile):
    for seed in range(5):
        rho, delta = densities(seed)
        ours = estimate(rho, delta, percentile=percentile, gate=gate, min_support=3).dense()
        expected = dense_map(rho, delta, percentile, gate, min_support=3)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


def test_swapping_chosen_and_rejected_negates_the_map():
    rho, delta = densities(0)
    for gate in ("paper", "strict"):
        torch.testing.assert_close(estimate(rho, -delta, gate=gate).dense(), -estimate(rho, delta, gate=gate).dense())


def test_a_rare_latent_has_the_global_mean_as_row_under_the_literal_gate_and_none_under_the_strict_one():
    rho, delta = densities(0)
    paper, strict = (estimate(rho, delta, gate=gate) for gate in ("paper", "strict"))
    never = torch.tensor([15])
    torch.testing.assert_close(paper.rows(never)[0], torch.tensor(delta).float().mean(0))
    torch.testing.assert_close(paper.mean_difference, torch.tensor(delta).float().mean(0))
    assert not strict.rows(never).any()
    assert int(paper.support[15]) == N
    assert int(strict.support[15]) == 0


def test_scores_sum_the_rows_of_the_selected_latents():
    rho, delta = densities(1)
    for gate in ("paper", "strict"):
        amap = estimate(rho, delta, gate=gate, min_support=1)
        selected = torch.tensor([[0, 7, 15], [3, -1, -1], [-1, -1, -1]])
        dense = amap.dense()
        expected = torch.stack([dense[[0, 7, 15]].sum(0), dense[3], torch.zeros(D)])
        torch.testing.assert_close(amap.scores(selected), expected)


def test_truncation_keeps_the_largest_and_smallest_entries_of_each_row():
    rho, delta = densities(2)
    amap = estimate(rho, delta, gate="paper")
    kept, dense = amap.truncate(4), amap.dense()
    for i in range(D):
        row = kept.scores(torch.tensor([[i]]))[0]
        expected = torch.cat([dense[i].sort().values[:4], dense[i].sort().values[-4:]])
        torch.testing.assert_close(row[row != 0].sort().values, expected[expected != 0].sort().values)


def test_truncating_to_everything_changes_nothing_even_where_both_ends_overlap():
    rho, delta = densities(3)
    amap = estimate(rho, delta, gate="paper")
    selected = torch.arange(D)[:, None]
    torch.testing.assert_close(amap.truncate(D).scores(selected), amap.dense())
    torch.testing.assert_close(amap.truncate(D - 3).scores(selected), amap.dense())


def test_maps_come_back_from_disk_as_they_were(tmp_path):
    rho, delta = densities(4)
    amap = estimate(rho, delta, gate="strict", min_support=2)
    amap.save(tmp_path / "map.safetensors")
    loaded = ConditionalDifferenceMap.load(tmp_path / "map.safetensors")
    assert torch.equal(loaded.dense(), amap.dense())
    assert loaded.gate == "strict"
    kept = amap.truncate(3)
    again = TruncatedMap.restore(kept.tensors())
    assert torch.equal(again.scores(torch.arange(D)[:, None]), kept.scores(torch.arange(D)[:, None]))


def test_bad_options_are_refused():
    rho, delta = densities(0)
    with pytest.raises(ValueError, match=r"\[0, 100\], got 101"):
        estimate(rho, delta, percentile=101.0)
    with pytest.raises(ValueError, match=r"min_support must be at least 1, got 0"):
        estimate(rho, delta, min_support=0)
    with pytest.raises(ValueError, match="same number"):
        ConditionalDifferenceMap.estimate(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"top must be in \[1, 25\], got 26"):
        estimate(rho, delta).truncate(26)
