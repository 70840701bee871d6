"""The claims that DSPA's estimator rests on (arXiv 2603.21461), checked on synthetic gates, effects and covariances.

Gates g of a prompt add effects of theirs on the log-odds of an answer: with features of covariance Sigma in chosen and
rejected answers, a shift by u = B g moves the mean difference by c Sigma B g.
"""

import math
from itertools import combinations

import pytest
import torch

from dspa.map.artifact_map import ArtifactMap, MapOptions
from dspa.map.condiff import ConditionalDifferenceMap
from dspa.steering import top_latents

C, M_IN, M_OUT = 0.5, 6, 9


def world(co_activation: float, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gates [n, M_IN], effects B [M_OUT, M_IN], covariance Sigma); gate i + 1 joins gate i with the given chance."""
    draw = torch.Generator().manual_seed(seed)
    gates = torch.rand(n, M_IN, generator=draw) < 0.2
    for i in range(M_IN - 1):
        gates[:, i + 1] |= gates[:, i] & (torch.rand(n, generator=draw) < co_activation)
    effects = torch.randn(M_OUT, M_IN, generator=draw) * 0.3
    root = torch.randn(M_OUT, M_OUT, generator=draw) * 0.3
    return gates.float(), effects, root @ root.t() + 0.1 * torch.eye(M_OUT)


def estimate(gates: torch.Tensor, difference: torch.Tensor, gate: str) -> ConditionalDifferenceMap:
    """With densities of 0 and 1 and gates open on more than 5 % of prompts, the 95th percentile is 1."""
    return ConditionalDifferenceMap.estimate(gates, difference, gate=gate)


def test_the_map_factors_into_covariance_effects_and_co_activation():
    gates, effects, sigma = world(0.5, 4000)
    moments = gates.t() @ gates / len(gates)
    expected = C * sigma @ effects @ moments
    shift = C * gates @ effects.t() @ sigma
    torch.testing.assert_close(estimate(gates, shift, "paper").dense().t(), expected, atol=1e-6, rtol=1e-5)
    # The same from answers drawn around means that lie shift apart, with the covariance Sigma.
    root = torch.linalg.cholesky(sigma)
    noise = [torch.randn(len(gates), M_OUT, generator=torch.Generator().manual_seed(k)) @ root.t() for k in (1, 2)]
    drawn = estimate(gates, (shift / 2 + noise[0]) - (-shift / 2 + noise[1]), "paper").dense().t()
    deviation = torch.sqrt(2 * sigma.diagonal()[:, None] * moments.diagonal()[None] / len(gates))
    assert ((drawn - expected).abs() < 5 * deviation).all()
    assert (expected.abs() > 5 * deviation).any()


def test_weak_co_activation_bounds_how_far_effects_mix():
    """Row i of the normalised map is c Sigma b_i plus what joins it: at most sum_l P(g_l|g_i) |c Sigma b_l|_max."""
    sizes = []
    for co_activation in (0.0, 0.3, 0.9):
        gates, effects, sigma = world(co_activation, 4000)
        own = C * sigma @ effects
        rows = estimate(gates, gates @ own.t(), "strict").dense()
        mixing = (rows - own.t()).abs().amax(1)
        given = gates.t() @ gates / gates.sum(0)[:, None]
        given.fill_diagonal_(0.0)
        bound = given @ own.abs().amax(0)
        assert (mixing <= bound + 1e-6).all()
        assert (bound <= given.amax(1) * (M_IN - 1) * own.abs().max() + 1e-6).all()
        sizes.append(float(mixing.mean()))
    assert 0 < sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_ablating_the_smallest_scores_is_optimal_for_a_linear_utility(k):
    """Of all ways to take at most k equal steps down, the k smallest negative coordinates gain most."""
    for seed in range(20):
        utility = torch.randn(8, generator=torch.Generator().manual_seed(seed))
        subsets = [set(s) for size in range(k + 1) for s in combinations(range(8), size)]
        best = max(subsets, key=lambda s: sum(-float(utility[j]) for j in s))
        assert {j for j in top_latents(-utility[None], k)[0].tolist() if j >= 0} == best


def error_bound(support, d_sae, delta):
    """sqrt(2 log(2 m / delta) / N_i): with probability 1 - delta no entry of row i of the strict map is further from
    its expectation (arXiv 2603.21461, appendix on concentration; differences lie in [-1, 1])."""
    return torch.sqrt(2 * math.log(2 * d_sae / delta) / support)


def test_the_error_of_the_normalised_map_stays_within_its_bound_as_often_as_promised():
    n, delta, effect = 300, 0.1, 0.3
    within, ratio = [], []
    for seed in range(200):
        draw = torch.Generator().manual_seed(seed)
        gates = (torch.rand(n, M_IN, generator=draw) < 0.2).float()
        # Differences of -1 or 1, the widest there are; the first gate alone moves their means.
        chance = (1 + effect * gates[:, :1]) / 2
        difference = (torch.rand(n, 20, generator=draw) < chance).float() * 2 - 1
        amap = estimate(gates, difference, "strict")
        expected = torch.full((M_IN, 1), 0.2 * effect)
        expected[0] = effect
        error = (amap.dense() - expected).abs().amax(1)
        bound = error_bound(amap.support, 20, delta)
        within.append(error <= bound)
        ratio.append(error / bound)
    assert (torch.stack(within).float().mean(0) >= 1 - delta).all()
    assert torch.stack(ratio).quantile(0.9) > 0.5, "the bound is so wide that holding it shows nothing"


def test_demixing_recovers_effects_that_strong_co_activation_mixes():
    gates, effects, sigma = world(0.9, 4000)
    own = C * sigma @ effects
    full = estimate(gates, gates @ own.t(), "paper")
    selected = torch.arange(M_IN).expand(3, -1)
    prompts = torch.tensor([[1.0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]])
    truth = prompts @ own.t()
    options = {"truncate": None, "demix_ridge": 1e-6}
    demixed = ArtifactMap.build(full, MapOptions(demix=True, **options)).scores(selected, prompts)
    torch.testing.assert_close(demixed, truth, atol=1e-3, rtol=1e-3)
    chosen = torch.where(prompts > 0, selected, -1)
    plain = ArtifactMap.build(full, MapOptions(**options)).scores(chosen, prompts)
    assert (torch.cosine_similarity(plain, truth) < 0.95).any()
    assert (torch.cosine_similarity(demixed, truth) > 0.999).all()
