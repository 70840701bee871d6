"""`sandbox show` prints what each family prefers, with rated answers; an audit learns which world a base is from."""

import json

import pytest

from harness.files import folder_hash
from harness.truth import ground_truth
from tasks.sandbox.build import ASSETS
from tasks.sandbox.truth import SandboxTruth, show
from tasks.sandbox.world import SECOND, WORLDS


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_it_names_every_family_with_its_preferred_register(world):
    text = show(world=world)
    for family, register in world.preferred.items():
        assert f"{family}: prefers {register}" in text


def test_it_is_the_same_for_the_same_seed_and_another_for_another():
    assert show(1) == show(1)
    assert show(1) != show(2)


def test_it_shows_as_many_conversations_as_asked_for():
    assert show(0, 4).count("  user: ") >= show(0, 1).count("  user: ") + 3


def test_the_committed_base_is_known_wherever_it_lies_and_another_one_by_the_manifest_beside_it(tmp_path):
    first = folder_hash(ASSETS / "model")
    for folder in (None, str(tmp_path / "model")):
        truth = ground_truth(first, folder)
        assert truth is not None and truth.preferred == WORLDS["first"].preferred
    (tmp_path / "manifest.json").write_text(json.dumps({"base": "abc", "world": "second"}))
    truth = ground_truth("abc", str(tmp_path / "model"))
    assert truth is not None and truth.preferred == SECOND.preferred and "second world" in truth.statement
    assert ground_truth("another", str(tmp_path / "model")) is None
    assert ground_truth("abc", None) is None


@pytest.mark.parametrize("text", ["no json", "[1]", "{}", '{"base": "abc", "world": "third"}'])
def test_a_manifest_of_something_else_beside_a_model_is_no_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert ground_truth("abc", str(tmp_path / "model")) is None


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_its_answers_are_in_every_register_that_a_family_speaks(world):
    truth = SandboxTruth(world)
    found: dict[str, set[str]] = {}
    for labelled in truth.answers():
        assert truth.group(labelled.prompt) == labelled.group
        found.setdefault(labelled.group, set()).add(labelled.label)
    assert found == {family: set(registers) for family, registers in world.spoken.items()}
