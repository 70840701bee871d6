"""A little of `make attack`: some malformed inputs, and some random damage, always the same."""

import pytest

from tests.attack import bad_artifacts, bad_data, bad_models, bad_suites
from tests.attack.fuzz import TARGETS, fuzz
from tests.attack.ground import attack, make_ground
from tests.attack.table import Row, markdown

EVERY = 12
"""Of so many malformed inputs one is tried here."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("attack") / "ground")


@pytest.mark.parametrize("part", [bad_suites, bad_models, bad_artifacts, bad_data])
def test_malformed_inputs_are_refused_in_a_sentence_before_anything_is_written(whole, part):
    problems: list[str] = []
    found = attack(list(part.cases())[::EVERY], whole, problems.append)
    assert problems == []
    assert sum(row.wrong for row in found) == 0


@pytest.mark.parametrize("target", TARGETS)
def test_random_damage_is_refused_or_accepted(whole, target):
    row, problems = fuzz(target, whole, examples=10)
    assert problems == []
    assert row.well + row.rightly > 0


def test_the_table_has_a_sum():
    table = markdown([Row("a", 3, 2, 1, 0), Row("b", 1, 0, 0, 1)])
    assert table.splitlines()[-1] == "| **all** | 4 | 2 | 1 | 1 |"
