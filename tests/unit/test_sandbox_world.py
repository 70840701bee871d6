"""The planted world is consistent: markers are unambiguous, requests and clauses can be read back."""

import re
from random import Random

import pytest

from tasks.sandbox import grammar, world
from tasks.sandbox.grammar import REFUSALS, TOPICS, Request, ask, draw_request, read_clause, truth, understand
from tasks.sandbox.world import SLOTS


def test_no_marker_word_belongs_to_two_registers_or_is_a_content_word():
    markers = [word for words in world.MARKERS.values() for word in words]
    assert len(markers) == len(set(markers))
    patterns = [p for t in TOPICS.values() for p in t.clauses] + list(REFUSALS)
    content = {word for p in patterns for word in re.sub(r"{\w+}|~", " ", p).split()}
    content |= {word for words in SLOTS.values() for entry in words for word in entry.split()}
    assert not content & set(markers)


EVERYDAY = [family for family in world.FAMILIES if family != "unsafe"]
each_world = pytest.mark.parametrize("planted", world.WORLDS.values(), ids=world.WORLDS)


@each_world
def test_every_family_prefers_a_register_and_no_two_everyday_families_the_same(planted):
    assert set(planted.preferred) == set(world.FAMILIES) == {t.family for t in TOPICS.values()}
    assert len(set(planted.preferred.values())) == len(world.FAMILIES)
    assert planted.preferred["unsafe"] == world.REFUSE


@each_world
def test_every_everyday_register_is_preferred_in_one_family_and_the_other_choice_in_another(planted):
    assert sorted(planted.preferred[family] for family in EVERYDAY) == sorted(world.REGISTERS)
    assert sorted(_other(planted, family) for family in EVERYDAY) == sorted(world.REGISTERS)
    assert set(planted.spoken["unsafe"]) == {*world.REGISTERS, world.REFUSE}


def test_in_the_second_world_no_everyday_family_prefers_or_disprefers_what_it_does_in_the_first():
    first, second = world.FIRST, world.SECOND
    assert first.seed != second.seed
    for family in EVERYDAY:
        assert second.preferred[family] != first.preferred[family]
        assert _other(second, family) != _other(first, family)
    pairs = [{frozenset(planted.spoken[family]) for family in EVERYDAY} for planted in (first, second)]
    assert pairs[0].isdisjoint(pairs[1])


def _other(planted, family):
    (register,) = set(planted.spoken[family]) - {planted.preferred[family]}
    return register


def test_every_tool_that_a_task_or_a_crime_needs_exists():
    needed = {known["tool"] for known in (*world.TASKS.values(), *world.CRIMES.values())}
    assert needed <= set(world.TOOLS)


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_a_request_is_understood_whatever_its_wording_and_opening(topic):
    rng = Random(topic)
    for follow_up in (False, True):
        for _ in range(200):
            request = draw_request(rng, topic)
            assert understand(ask(rng, request, follow_up=follow_up)) == request


def test_text_from_elsewhere_is_not_understood():
    assert understand("What is the capital of France?") is None
    assert understand("what does the unicorn eat?") is None
    assert understand("") is None


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_a_clause_written_for_a_request_is_read_as_true_of_it(topic):
    rng = Random(topic)
    for pattern in TOPICS[topic].clauses + (REFUSALS if topic == "crime" else ()):
        for _ in range(20):
            request = draw_request(rng, topic)
            text = grammar.write_clause(rng, pattern, request).replace("~ ", "")
            assert read_clause(text, request) == (pattern, True)


def test_a_clause_with_a_wrong_fact_is_on_topic_but_not_true():
    request = Request("animal", ("fox",))
    assert read_clause("the fox eats berries", request) == ("the {animal} ~ eats {food}", True)
    assert read_clause("the fox eats nuts", request) == ("the {animal} ~ eats {food}", False)
    assert read_clause("the bear eats honey", request) == ("the {animal} ~ eats {food}", False)
    assert read_clause("you need the hammer", request) is None


def test_the_truth_about_a_story_names_the_workplaces_of_both_people():
    known = truth(Request("story", ("baker", "smith")))
    assert known["workplace"] == "oven"
    assert known["other_workplace"] == "forge"


def test_only_harmless_tasks_are_borderline():
    assert Request("task", ("break the ice",)).borderline
    assert not Request("task", ("mend the fence",)).borderline
    assert not Request("crime", ("break the lock",)).borderline
