"""Ridge scores against dense solves, with triples that are really left out."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dspa.map import kernel
from dspa.map.kernel import PENALTIES, PromptFeatures, drawn, unexplained_share
from dspa.map.ridge import RidgeMap, most_flops
from dspa.map.sparse import SparseRows
from harness.compute import count_flops

N, D_IN, D_OUT = 90, 50, 40
NEVER, SILENT = 3, 7
"""An input latent that is never active, and a triple whose prompt has no active latent."""


def world(*, n: int = N, effect: float = 0.15, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt densities, differences of the answers): each active latent has an effect of its own."""
    draw = torch.Generator().manual_seed(seed)
    rho = torch.rand(n, D_IN, generator=draw) * (torch.rand(n, D_IN, generator=draw) < 0.3)
    rho[:, NEVER], rho[SILENT] = 0, 0
    effects = effect * torch.randn(D_IN, D_OUT, generator=draw)
    delta = (rho > 0).float() @ effects + 0.2 * torch.randn(n, D_OUT, generator=draw) + 0.1
    return rho, delta.masked_fill(torch.rand(n, D_OUT, generator=draw) < 0.3, 0)


def fitted(rho: torch.Tensor, delta: torch.Tensor, **options):
    return RidgeMap.fit(SparseRows.from_dense(rho), SparseRows.from_dense(delta), **options)


def new_prompts(n: int = 9) -> torch.Tensor:
    rho, _ = world(n=n, seed=5)
    rho[0, NEVER] = 0.5
    return rho


def scores(ridge: RidgeMap, rho: torch.Tensor) -> torch.Tensor:
    return ridge.scores(torch.zeros(len(rho), 0, dtype=torch.long), rho)


def unit(rho: torch.Tensor) -> np.ndarray:
    """u(x): binary activity divided by its length."""
    active = (rho > 0).double().numpy()
    return active / np.sqrt(active.sum(1, keepdims=True)).clip(min=1)


def left_out(features: np.ndarray, delta: np.ndarray, penalty: float, rows=range(N)) -> float:
    """Share of the differences' spread that is left when each row is predicted from all others; the mean is kept."""
    spread, error = delta - delta.mean(0), 0.0
    for row in rows:
        others = np.arange(len(features)) != row
        gram = features[others].T @ features[others] + penalty * np.eye(features.shape[1])
        weights = np.linalg.solve(gram, features[others].T @ spread[others])
        error += ((spread[row] - features[row] @ weights) ** 2).sum()
    return error / (spread[list(rows)] ** 2).sum()


def nystroem(rho: torch.Tensor, landmarks: np.ndarray, to: torch.Tensor | None = None) -> np.ndarray:
    """k(x) K_mm^-1/2."""
    values, vectors = np.linalg.eigh(unit(rho)[landmarks] @ unit(rho)[landmarks].T)
    kept = values > 1e-9
    return unit(rho if to is None else to) @ unit(rho)[landmarks].T @ (vectors[:, kept] / np.sqrt(values[kept]))


def test_scores_are_those_of_the_dense_kernel_solve():
    rho, delta = world()
    ridge, found, _ = fitted(rho, delta)
    change = delta.double().numpy() - delta.double().numpy().mean(0)
    gram = unit(rho) @ unit(rho).T
    for prompts in (rho, new_prompts()):
        expected = unit(prompts) @ unit(rho).T @ np.linalg.solve(gram + found.penalty * np.eye(N), change)
        np.testing.assert_allclose(scores(ridge, prompts), expected + delta.double().numpy().mean(0), atol=1e-6)


def test_the_penalty_has_the_smallest_error_when_triples_are_really_left_out():
    rho, delta = world()
    _, found, _ = fitted(rho, delta)
    shares = {penalty: left_out(unit(rho), delta.double().numpy(), penalty) for penalty in PENALTIES}
    assert found.penalty == min(shares, key=lambda penalty: shares[penalty]) not in (PENALTIES[0], PENALTIES[-1])
    assert found.share == pytest.approx(shares[found.penalty], rel=1e-9)
    assert unexplained_share(SparseRows.from_dense(rho), SparseRows.from_dense(delta)) == found.share


def test_as_many_landmarks_as_triples_are_the_kernel_form():
    rho, delta = world()
    ridge, found, _ = fitted(rho, delta)
    for landmarks in (N, 5000):
        again, same, _ = fitted(rho, delta, landmarks=landmarks)
        assert same == found and torch.equal(scores(again, new_prompts()), scores(ridge, new_prompts()))


def test_with_fewer_landmarks_scores_and_error_are_those_of_ridge_regression_on_nystroem_features():
    rho, delta = world()
    ridge, found, _ = fitted(rho, delta, landmarks=30)
    chosen = drawn(N, 30, "cpu").numpy()
    features, mean = nystroem(rho, chosen), delta.double().numpy().mean(0)
    shares = [left_out(features, delta.double().numpy(), penalty) for penalty in PENALTIES]
    assert found.share == pytest.approx(min(shares), rel=1e-8) and found.penalty == PENALTIES[np.argmin(shares)]
    gram = features.T @ features + found.penalty * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features.T @ (delta.double().numpy() - mean))
    prompts = new_prompts()
    np.testing.assert_allclose(scores(ridge, prompts), mean + nystroem(rho, chosen, prompts) @ weights, atol=1e-6)


def test_beyond_some_thousands_of_triples_a_sample_is_left_out_and_features_are_single_precision(monkeypatch):
    rho, delta = world()
    exact, _, _ = fitted(rho, delta)
    monkeypatch.setattr(kernel, "LEFT_OUT", 40)
    monkeypatch.setattr(kernel, "_DOUBLE", 50)
    monkeypatch.setattr(kernel, "BLOCK_NUMBERS", 256)  # many blocks of triples, landmarks and output latents
    ridge, found, _ = fitted(rho, delta)
    rows = drawn(N, 40, "cpu").tolist()
    expected = left_out(unit(rho), delta.double().numpy(), found.penalty, rows)
    assert found.share == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(scores(ridge, new_prompts()), scores(exact, new_prompts()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_the_rank_s_error_is_that_of_the_fitted_scores_and_no_factors_have_a_smaller_one(rank):
    rho, delta = world()
    full, found, nothing = fitted(rho, delta)
    ridge, same, error = fitted(rho, delta, rank=rank)
    assert nothing == 0 and same == found and ridge.inner.shape[1] == len(ridge.outer) == rank
    wanted, got = (scores(one, rho).double() - full.mean_difference.double() for one in (full, ridge))
    assert float((got - wanted).norm() / wanted.norm()) == pytest.approx(error, rel=1e-4)
    values = torch.linalg.svdvals(wanted)
    assert float(values[rank:].norm() / values.norm()) == pytest.approx(error, rel=1e-4)


def test_saved_and_restored_it_scores_the_same_to_the_bit(tmp_path):
    rho, delta = world()
    mean = RidgeMap.of_mean(delta.mean(0), d_in=D_IN, n_triples=N)
    for ridge in (fitted(rho, delta, rank=6)[0], mean):
        save_file(ridge.tensors(), tmp_path / "map.safetensors")
        again = RidgeMap.restore(load_file(tmp_path / "map.safetensors"))
        assert (again.n_triples, again.d_in, again.d_sae) == (N, D_IN, D_OUT)
        assert torch.equal(scores(again, new_prompts()), scores(ridge, new_prompts()))


def test_a_prompt_s_scores_do_not_depend_on_its_neighbours_nor_on_how_dense_its_latents_are():
    ridge, _, _ = fitted(*world())
    prompts = new_prompts(30)
    together = scores(ridge, prompts)
    for row, prompt in enumerate(prompts):
        assert torch.equal(scores(ridge, prompt[None])[0], together[row])
    assert torch.equal(scores(ridge, prompts.flip(0)), together.flip(0))
    assert torch.equal(scores(ridge, (prompts > 0).float()), together)


def test_a_prompt_without_known_latents_gets_the_mean_and_unknown_ones_dilute_the_others():
    rho, delta = world()
    ridge, _, _ = fitted(rho, delta)
    assert NEVER not in ridge.latents
    prompts = torch.zeros(4, D_IN)
    prompts[1, NEVER] = prompts[3, NEVER] = 0.5
    prompts[2:, 11] = 0.5
    nothing, unknown, known, both = scores(ridge, prompts) - ridge.mean_difference
    assert not nothing.any() and not unknown.any() and known.any()
    torch.testing.assert_close(both, known / 2**0.5)


def test_swapping_chosen_and_rejected_negates_the_scores_and_changes_neither_penalty_nor_share():
    rho, delta = world()
    (ours, found, error), (swapped, again, same) = fitted(rho, delta, rank=9), fitted(rho, -delta, rank=9)
    assert (found, error) == (again, same)
    assert torch.equal(scores(swapped, new_prompts()), -scores(ours, new_prompts()))


def test_without_structure_the_unexplained_share_is_near_one_and_with_structure_small():
    rho, _ = world(n=400)
    shares = {}
    for effect in (0.0, 0.15, 1.0):
        _, delta = world(n=400, effect=effect)
        shares[effect] = unexplained_share(SparseRows.from_dense(rho), SparseRows.from_dense(delta))
    assert 0.98 < shares[0.0] < 1.02
    assert shares[1.0] < shares[0.15] < 0.9


def test_where_nothing_differs_or_nothing_is_active_every_prompt_gets_the_mean():
    rho, delta = world()
    same = delta[:1].repeat(N, 1)
    for prompts, differences in ((rho, same), (torch.zeros_like(rho), delta), (rho[:1], delta[:1])):
        ridge, found, error = fitted(prompts, differences)
        torch.testing.assert_close(scores(ridge, new_prompts()), differences.mean(0).expand(9, -1))
        assert error == 0 and (found.share is None or found.share == pytest.approx(1))


def test_the_mean_map_ranks_and_scores_by_the_mean():
    _, delta = world()
    ridge = RidgeMap.of_mean(delta.mean(0), d_in=D_IN, n_triples=N)
    assert torch.equal(scores(ridge, new_prompts()), delta.mean(0).expand(9, -1))
    assert torch.equal(ridge.column_sums, delta.mean(0))
    augment, ablate = ridge.candidates(3)
    assert augment.tolist() == delta.mean(0).argsort(descending=True)[:3].tolist()
    assert ablate.tolist() == delta.mean(0).argsort()[:3].tolist()


@pytest.mark.parametrize("rank", [None, 8])
def test_the_flops_counted_are_those_of_the_products_and_decompositions(rank):
    rho, delta = world()
    prompt, difference = SparseRows.from_dense(rho), SparseRows.from_dense(delta)
    with count_flops() as counter:
        ridge, _, _ = RidgeMap.fit(prompt, difference, rank=rank)
    kept = len(PromptFeatures.of(prompt).energy)
    r = len(ridge.outer)
    active, differing = len(prompt.column), len(difference.column)
    expected = 2 * active * N + 9 * N**3  # cosines; their decomposition
    expected += 2 * N * N * kept + 2 * N * kept**2 + 9 * kept**3 + 2 * N * kept**2 + 2 * N * N * kept  # features
    expected += 2 * differing * kept + 2 * D_OUT * kept**2 + 2 * differing * kept + 2 * D_OUT * kept  # moments
    expected += len(PENALTIES) * 2 * N * kept**2  # leaving out
    expected += 9 * kept**3 + 2 * N * kept * r + 2 * active * r + 2 * N * kept * r + 2 * differing * r  # factors
    assert counter.get_total_flops() == expected <= most_flops(N, D_IN, D_OUT, rank=rank)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 0}, "rank and landmarks must be at least 1"),
        ({"landmarks": 0}, "rank and landmarks must be at least 1"),
        ({"rho": torch.ones(N - 1, D_IN)}, "same number"),
        ({"rho": -torch.ones(N, D_IN)}, "a density is negative"),
        ({"delta": torch.full((N, D_OUT), torch.nan)}, "a response difference is not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, said):
    rho, delta = world()
    with pytest.raises(ValueError, match=said):
        fitted(**{"rho": rho, "delta": delta} | change)
