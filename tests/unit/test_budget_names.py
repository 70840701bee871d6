"""Names of budgets and cells: of numbers of triples, and of bills."""

import pytest

from harness.run_folder.plan import budget_order, budget_text, cell_name, flops_budget, flops_of


@pytest.mark.parametrize(
    ("flops", "name"), [(10**11, "1e+11flops"), (123_456_789, "1.23456789e+8flops"), (7, "7e+0flops")]
)
def test_a_bill_is_named_exactly(flops, name):
    assert flops_budget(flops) == name
    assert flops_of(name) == flops
    assert flops_of(300) is None


def test_bills_come_before_numbers_of_triples_and_each_goes_by_size():
    names = [300, flops_budget(9 * 10**10), 0, flops_budget(10**11), 20]
    assert sorted(names, key=budget_order) == ["9e+10flops", "1e+11flops", 0, 20, 300]


def test_cells_and_texts_tell_the_two_kinds_apart():
    assert cell_name("dspa", 300, 0, {"alpha": 0.2}) == "dspa@alpha=0.2__n300__s0"
    assert cell_name("dspa", "1e+11flops", 2) == "dspa__1e+11flops__s2"
    assert (budget_text(300), budget_text("1e+11flops")) == ("300 triples", "1e+11 FLOPs")
