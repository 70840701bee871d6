import pytest
import torch

from dspa.diagnostics import mean_pairwise_jaccard
from dspa.steering import latent_change, latent_sets, movable_latents, top_latents

LATENTS = torch.tensor([[[2.0, 0.5, 0.0, 3.0]]])
STRONGEST = torch.tensor([[5.0]])
STEERED = torch.tensor([[True]])


def change(sign, *, alpha, scale, steered=STEERED, active_only=True):
    signs = torch.tensor([sign])
    movable = movable_latents(LATENTS, signs, steered, active_only=active_only)
    return latent_change(LATENTS, signs, STRONGEST if scale == "max" else None, movable, alpha=alpha)[0, 0].tolist()


def test_ablation_subtracts_alpha_times_the_strongest_activation_and_stops_at_zero():
    assert change([-1.0, -1.0, -1.0, 0.0], alpha=0.2, scale="max") == pytest.approx([-1.0, -0.5, 0.0, 0.0])


def test_augmentation_adds_to_active_latents_only():
    assert change([1.0, 0.0, 1.0, 1.0], alpha=0.2, scale="max") == pytest.approx([1.0, 0.0, 0.0, 1.0])


def test_own_scale_moves_each_latent_by_a_share_of_itself():
    assert change([-1.0, 1.0, -1.0, -1.0], alpha=0.5, scale="own") == pytest.approx([-1.0, 0.25, 0.0, -1.5])


def test_without_the_token_gate_inactive_latents_move_up_but_never_below_zero():
    assert change([1.0, -1.0, 1.0, 0.0], alpha=0.2, scale="max", active_only=False) == pytest.approx([1, -0.5, 1, 0])


def test_alpha_zero_changes_nothing_to_the_bit():
    for scale in ("max", "own"):
        assert change([-1.0, 1.0, -1.0, 1.0], alpha=0.0, scale=scale) == [0.0] * 4


def test_a_token_that_is_not_steered_does_not_change():
    assert change([-1.0] * 4, alpha=0.2, scale="max", steered=~STEERED) == [0.0] * 4


def test_what_is_not_a_number_does_not_spread_to_tokens_that_are_not_steered():
    latents, signs = torch.full((1, 1, 2), torch.nan), -torch.ones(1, 2)
    movable = movable_latents(latents, signs, ~STEERED)
    assert latent_change(latents, signs, None, movable, alpha=0.2).tolist() == [[[0.0, 0.0]]]


def test_sets_hold_only_active_latents_and_only_scores_of_the_right_sign():
    assert top_latents(torch.tensor([[0.1, 0.0, 0.4]]), 3).tolist() == [[2, 0, -1]]
    scores = torch.tensor([[0.3, -0.2, 0.0, -0.5]])
    assert latent_sets(scores, "ablate", 3)[0].tolist() == [[3, 1, -1]]
    assert latent_sets(scores, "augment", 2)[0].tolist() == [[0, -1]]


def test_jaccard_is_the_mean_over_pairs():
    sets = [frozenset({1, 2}), frozenset({2, 3}), frozenset({1, 2})]
    assert mean_pairwise_jaccard(sets) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert mean_pairwise_jaccard([frozenset(), frozenset()]) == 1.0
    with pytest.raises(ValueError, match="at least two"):
        mean_pairwise_jaccard([frozenset({1})])
