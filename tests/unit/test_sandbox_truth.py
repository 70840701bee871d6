"""`sandbox show` prints what each family prefers, with rated answers."""

from tasks.sandbox.truth import show
from tasks.sandbox.world import PREFERRED


def test_it_names_every_family_with_its_preferred_register():
    text = show()
    for family, register in PREFERRED.items():
        assert f"{family}: prefers {register}" in text


def test_it_is_the_same_for_the_same_seed_and_another_for_another():
    assert show(1) == show(1)
    assert show(1) != show(2)


def test_it_shows_as_many_conversations_as_asked_for():
    assert show(0, 4).count("  user: ") >= show(0, 1).count("  user: ") + 3
