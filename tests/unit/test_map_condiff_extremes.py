import pytest
import torch

from dspa.map.condiff import extreme_columns


def brute_force(row, k, largest):
    order = sorted(range(len(row)), key=lambda j: (-row[j] if largest else row[j], j))
    return set(order[:k])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 4, 12, 40])
def test_ties_at_the_cut_off_go_to_the_lower_columns(monkeypatch, largest, k):
    monkeypatch.setattr("dspa.map.condiff._TIED_NUMBERS", 64)
    values = torch.randint(-3, 4, (50, 40), generator=torch.Generator().manual_seed(0)) / 7
    values[values == 0] = 1 / 7
    for row, columns in zip(values.tolist(), extreme_columns(values, k, largest=largest).tolist(), strict=True):
        assert set(columns) == brute_force(row, k, largest)
        extremes = [row[j] for j in columns]
        assert extremes == sorted(extremes, reverse=largest)


def test_more_than_there_are_gives_all():
    assert extreme_columns(torch.tensor([[0.2, 0.3]]), 5).tolist() == [[1, 0]]
