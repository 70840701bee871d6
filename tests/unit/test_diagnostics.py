"""The figures of a run, worked out by hand on a map of which everything is known."""

import json

import pytest
import torch

import dspa.diagnostics
from dspa.diagnostics import SelectionTally, edit_counts, edited_share_by_age, selection_figures
from dspa.map.artifact_map import ArtifactMap, MapOptions
from dspa.map.condiff import ConditionalDifferenceMap


def shipped() -> ArtifactMap:
    """Latent 0 fires on every prompt; column 0 always rises, column 1 always falls, column 2 does either."""
    difference = torch.tensor([[0.5, -0.5, 1.0], [0.25, -0.25, -1.0]]).repeat(20, 1)
    full = ConditionalDifferenceMap.estimate(torch.ones(40, 1), difference, gate="strict")
    return ArtifactMap.build(full, MapOptions(truncate=1))


def test_what_was_selected_is_summed_up_and_bootstrapped_only_when_figures_are_asked_for(monkeypatch):
    condition_map = shipped()
    tally = SelectionTally(condition_map)
    inputs, latents = torch.tensor([[0], [0], [-1]]), torch.tensor([[0, 1], [0, 2], [-1, -1]])
    mean = condition_map.mean_difference
    asked = []
    interval = ArtifactMap.interval
    monkeypatch.setattr(ArtifactMap, "interval", lambda self, *args: asked.append(args) or interval(self, *args))
    tally.selected(inputs, latents, torch.stack([2 * mean, -mean, torch.zeros(3)]))
    counted = tally.read()
    assert asked == [], "no prompt waits for intervals"
    figures = selection_figures(condition_map, [counted])
    assert figures["jaccard"] == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert figures["cosine_to_global"] == pytest.approx((1 - 1 + 0) / 3, abs=1e-6)
    assert figures["set_size"] == pytest.approx(4 / 3)
    assert figures["median_support"] == 40
    assert figures["sure_share"] == pytest.approx(3 / 4), "all but column 2"
    assert len(asked) == 1


def test_figures_are_those_of_the_first_prompts_however_they_came_in_sessions(monkeypatch):
    monkeypatch.setattr(dspa.diagnostics, "_KEPT_PROMPTS", 5)
    monkeypatch.setattr(dspa.diagnostics, "_BOOTSTRAPPED_PROMPTS", 2)
    condition_map = shipped()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(-1, 1, (7, 2), generator=generator)
    latents, scores = torch.randint(-1, 3, (7, 2), generator=generator), torch.randn(7, 3, generator=generator)
    figures = []
    for sessions in ([[7]], [[3, 1, 3]], [[4], [3]], [[1, 1], [5]]):
        start, tallies = 0, []
        for batches in sessions:
            tally = SelectionTally(condition_map)
            for size in batches:
                part = slice(start, start + size)
                tally.selected(inputs[part], latents[part], scores[part])
                start += size
            tallies.append(json.loads(json.dumps(tally.read())))
        figures.append(selection_figures(condition_map, tallies))
    assert figures[0] == figures[1] == figures[2] == figures[3]
    assert figures[0]["set_size"] == sum(len({i for i in row if i >= 0}) for row in latents[:5].tolist()) / 5


def test_without_sessions_or_prompts_there_are_no_figures():
    condition_map = shipped()
    assert selection_figures(condition_map, []) == {}
    assert selection_figures(condition_map, [SelectionTally(condition_map).read()]) == {}


def test_edits_on_the_most_extreme_columns_are_a_share_of_all_edits(monkeypatch):
    monkeypatch.setattr(dspa.diagnostics, "_AUDITED", 1)
    condition_map = shipped()
    changed = torch.tensor([[[True, True, True], [False, False, True], [False, False, False]]])
    seen = torch.zeros(1, dtype=torch.long)
    tally = SelectionTally(condition_map)
    tally.edited(changed, torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, True]]), seen)
    counted = tally.read()
    assert counted["edits"] == [[0, 1], [1, 1], [2, 2]]
    assert seen.tolist() == [3]
    assert edit_counts([counted, counted], 3).tolist() == [2, 2, 4]
    for tallies in ([counted], [counted, counted]):
        figures = selection_figures(condition_map, tallies)
        assert figures["edits_in_top"] == pytest.approx(2 / 4), "columns 0 and 1"
        assert figures["edited_share"] == pytest.approx(2 / 3)
        assert figures["edited_latents"] == 3
        assert edited_share_by_age(tallies) == [(1, 1, 1.0), (2, 3, 0.5)]
