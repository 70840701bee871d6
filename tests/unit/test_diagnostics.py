"""The figures of a run, worked out by hand on a map of which everything is known."""

import pytest
import torch

import dspa.diagnostics
from dspa.condiff import ConditionalDifferenceMap
from dspa.diagnostics import SelectionLog
from dspa.shipped import MapOptions, ShippedMap


def shipped() -> ShippedMap:
    """Latent 0 fires on every prompt; column 0 always rises, column 1 always falls, column 2 does either."""
    difference = torch.tensor([[0.5, -0.5, 1.0], [0.25, -0.25, -1.0]]).repeat(20, 1)
    full = ConditionalDifferenceMap.estimate(torch.ones(40, 1), difference, gate="strict")
    return ShippedMap.build(full, MapOptions(truncate=1))


def test_what_was_selected_is_summed_up(monkeypatch):
    condition_map = shipped()
    log = SelectionLog(condition_map, "cpu")
    inputs, latents = torch.tensor([[0], [0], [-1]]), torch.tensor([[0, 1], [0, 2], [-1, -1]])
    mean = condition_map.mean_difference
    asked = []
    interval = ShippedMap.interval
    monkeypatch.setattr(ShippedMap, "interval", lambda self, *args: asked.append(args) or interval(self, *args))
    log.selected(inputs, latents, torch.stack([2 * mean, -mean, torch.zeros(3)]))
    assert asked == [], "no prompt waits for intervals"
    for _ in range(2):
        figures = log.summary()
        assert figures["jaccard"] == pytest.approx((1 / 3 + 0 + 0) / 3)
        assert figures["cosine_to_global"] == pytest.approx((1 - 1 + 0) / 3, abs=1e-6)
        assert figures["set_size"] == pytest.approx(4 / 3)
        assert figures["median_support"] == 40
        assert figures["sure_share"] == pytest.approx(3 / 4), "all but column 2"
    assert len(asked) == 1


def test_edits_on_the_most_extreme_columns_are_a_share_of_all_edits(monkeypatch):
    monkeypatch.setattr(dspa.diagnostics, "_AUDITED", 1)
    log = SelectionLog(shipped(), "cpu")
    changed = torch.tensor([[[True, True, True], [False, False, True], [False, False, False]]])
    seen = torch.zeros(1, dtype=torch.long)
    log.edited(changed, torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, True]]), seen)
    figures = log.summary()
    assert log.edit_counts.tolist() == [1, 1, 2]
    assert figures["edits_in_top"] == pytest.approx(2 / 4), "columns 0 and 1"
    assert figures["edited_share"] == pytest.approx(2 / 3)
    assert figures["edited_latents"] == 3
    assert log.edited_share_by_age() == [(1, 1, 1.0), (2, 3, 0.5)]
    assert seen.tolist() == [3]
