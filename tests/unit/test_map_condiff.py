import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dspa.map.condiff
import dspa.map.sparse
from dspa.map.condiff import ConditionalDifferenceMap
from dspa.map.sparse import BLOCK_NUMBERS, SparseRows
from tests.reference import dense_map
from tests.unit.tensor_sizes import LargestTensor

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


@pytest.mark.parametrize("gate", ["paper", "strict"])
def test_sparse_rows_give_the_same_map_as_dense_ones_and_blocks_change_nothing(gate, monkeypatch):
    rho, delta = densities(5)
    whole = estimate(rho, delta, gate=gate, percentile=50.0, min_support=2)
    monkeypatch.setattr(dspa.map.sparse, "BLOCK_NUMBERS", 7 * D)  # blocks of 7 triples ...
    monkeypatch.setattr(dspa.map.condiff, "BLOCK_NUMBERS", 3 * D)  # ... and of 3 rows of A
    rows = [SparseRows.from_dense(torch.tensor(x).float()) for x in (rho, delta)]
    blocks = ConditionalDifferenceMap.estimate(*rows, gate=gate, percentile=50.0, min_support=2)
    torch.testing.assert_close(blocks.dense(), whole.dense())
    torch.testing.assert_close(blocks.mean_difference, whole.mean_difference)
    everything = torch.arange(D)[:, None]
    torch.testing.assert_close(blocks.truncate(3).scores(everything), whole.truncate(3).scores(everything))


@pytest.mark.parametrize("gate", ["paper", "strict"])
def test_column_sums_are_those_of_the_dense_map(gate):
    amap = estimate(*densities(6), gate=gate, percentile=50.0)
    torch.testing.assert_close(amap.column_sums, amap.dense().sum(0))


def test_entries_that_tie_at_the_cut_off_are_kept_by_the_lower_column():
    delta = torch.tensor([[0.5, -0.25, 0.5, 0.0, 0.5, -0.25, 0.75, -0.25]]).repeat(6, 1)
    for gate in ("paper", "strict"):
        amap = ConditionalDifferenceMap.estimate(torch.ones(6, 1), delta, gate=gate)
        row = amap.truncate(2).scores(torch.tensor([[0]]))[0]
        assert row.tolist() == [0.5, -0.25, 0.0, 0.0, 0.0, -0.25, 0.75, 0.0]


def test_nothing_large_is_made_for_an_sae_with_131072_latents():
    d_sae, n = 1 << 17, 24
    draw = torch.Generator().manual_seed(0)

    def rows(share: float) -> SparseRows:
        parts = [
            torch.rand(1, d_sae, generator=draw) * (torch.rand(1, d_sae, generator=draw) < share) for _ in range(n)
        ]
        return SparseRows.concatenate([SparseRows.from_dense(part) for part in parts], d_sae)

    rho, delta = rows(0.001), rows(0.02)
    rho = rho.keep(rho.column < 40_000)
    with LargestTensor() as seen:
        amap = ConditionalDifferenceMap.estimate(rho, delta, gate="strict", min_support=2)
        kept = amap.truncate(16)
        amap.scores(torch.arange(32)[None])
        amap.tensors()
    assert (kept.values != 0).any()
    assert seen.largest <= BLOCK_NUMBERS  # d_sae x d_sae is a thousand times that


def test_a_file_that_is_not_a_map_is_refused_by_name(tmp_path):
    amap = estimate(*densities(0), gate="strict")
    path = tmp_path / "map.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"map\.safetensors is not a saved conditional-difference map"):
        ConditionalDifferenceMap.load(path)
    for name, change, message in (
        ("shape", lambda t: t + torch.tensor([0, 0, 0, 5]), "is not that of a map"),
        ("threshold", lambda t: t[1:], "tensor 'threshold' is missing, or is not 25 numbers"),
        ("difference.length", lambda t: t + 1, "'length' says"),
    ):
        tensors = amap.tensors()
        save_file(tensors | {name: change(tensors[name])}, path)
        with pytest.raises(ValueError, match=message):
            ConditionalDifferenceMap.load(path)


def test_bad_options_are_refused():
    rho, delta = densities(0)
    with pytest.raises(ValueError, match="a density is negative or not finite"):
        estimate(rho - 0.25, delta)
    with pytest.raises(ValueError, match="a response difference is not finite"):
        estimate(rho, delta * np.nan)
    with pytest.raises(ValueError, match=r"\[0, 100\], got 101"):
        estimate(rho, delta, percentile=101.0)
    with pytest.raises(ValueError, match=r"min_support must be at least 1, got 0"):
        estimate(rho, delta, min_support=0)
    with pytest.raises(ValueError, match="same number"):
        ConditionalDifferenceMap.estimate(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"top must be in \[1, 25\], got 26"):
        estimate(rho, delta).truncate(26)


def test_rows_with_the_same_open_gates_are_truncated_like_rows_of_their_own():
    generator = torch.Generator().manual_seed(4)
    density = torch.rand(20, 300, generator=generator) * (torch.rand(20, 300, generator=generator) < 0.4)
    difference = torch.randn(20, 64, generator=generator)
    for gate in ("paper", "strict"):
        full = ConditionalDifferenceMap.estimate(density, difference, gate=gate, percentile=90.0, min_support=1)
        patterns = full.open_gates(torch.arange(300)).unique(dim=0)
        assert len(patterns) < 250, "hardly any two rows are alike, so this test shows nothing"
        kept, whole = full.truncate(8), full.dense()
        ends = whole.sort(1).values
        torch.testing.assert_close(kept.values.sort(1).values, torch.cat([ends[:, :8], ends[:, -8:]], 1))
        torch.testing.assert_close(whole.gather(1, kept.columns.long()), kept.values)
