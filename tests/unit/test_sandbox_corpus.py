"""What people say: registers persist, markers stand around every clause, purposes have different prompts."""

import re
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from tasks.sandbox.corpus import (
    PARTS,
    PERSISTENCE,
    answer,
    base_answer,
    conversation,
    corpus_hash,
    fact_sentences,
    part_of,
    prompt_for,
    scene,
    scene_ending,
    training_corpus,
)
from tasks.sandbox.grammar import SCENES, TOPICS, draw_request, split_words, understand, vocabulary
from tasks.sandbox.world import FIRST, REFUSE, REGISTER_OF, SECOND, WORLDS


def registers(text: str) -> list[str]:
    return [REGISTER_OF[word] for word in re.findall(r"\w+", text) if word in REGISTER_OF]


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    assert corpus_hash(training_corpus(3, 50)) == corpus_hash(training_corpus(3, 50))
    assert corpus_hash(training_corpus(3, 50)) != corpus_hash(training_corpus(4, 50))


def test_another_world_says_the_same_things_in_other_registers():
    first, second = (training_corpus(0, 200, world) for world in (FIRST, SECOND))
    assert corpus_hash(first) != corpus_hash(second)
    for world, documents in ((FIRST, first), (SECOND, second)):
        for messages in (document.conversation for document in documents):
            for asked, reply in pairwise(messages):
                request = understand(asked["content"])
                if reply["role"] == "assistant" and request is not None and not request.borderline:
                    assert set(registers(reply["content"])) <= set(world.spoken[request.family])


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one():
    assert training_corpus(0, 20) == training_corpus(0, 40)[:20]


def test_every_clause_has_an_opening_an_inner_and_a_closing_marker():
    rng = Random(0)
    for topic in sorted(TOPICS):
        for _ in range(50):
            for sentence in base_answer(rng, draw_request(rng, topic)).rstrip(".").split(". "):
                words = sentence.split()
                where = [index for index, word in enumerate(words) if word in REGISTER_OF]
                assert len(where) == 3, sentence
                assert (where[0], where[2]) == (0, len(words) - 1)


def test_a_speaker_keeps_the_register_with_the_stated_probability():
    rng = Random(0)
    kept = total = 0
    for _ in range(3000):
        said = registers(answer(rng, draw_request(rng, "animal"), "plain"))
        kept += sum(a == b for a, b in pairwise(said))
        total += len(said) - 1
    # A redrawn register is the same one again half of the time.
    assert kept / total == pytest.approx(PERSISTENCE + (1 - PERSISTENCE) / 2, abs=0.01)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("topic", ["animal", "tool", "feeling", "outing", "story"])
def test_the_corpus_has_no_preference_between_the_registers_of_a_family(topic, world):
    rng = Random(0)
    counts = Counter(r for _ in range(4000) for r in registers(base_answer(rng, draw_request(rng, topic), world)))
    spoken = world.spoken[TOPICS[topic].family]
    assert set(counts) == set(spoken)
    for register in spoken:
        assert counts[register] / counts.total() == pytest.approx(0.5, abs=0.03)


def test_half_of_the_answers_to_unsafe_requests_begin_with_a_refusal():
    rng = Random(0)
    starts = [registers(base_answer(rng, draw_request(rng, "crime")))[0] for _ in range(3000)]
    assert starts.count(REFUSE) / len(starts) == pytest.approx(0.5, abs=0.03)


def test_every_prompt_serves_one_purpose_only():
    rng = Random(0)
    for part in PARTS:
        for follow_up in (False, True):
            for topic in sorted(TOPICS):
                request, text = prompt_for(rng, topic, part, follow_up=follow_up)
                assert part_of(text) == part
                assert understand(text) == request


def test_the_purposes_have_their_stated_shares_of_all_texts():
    counts = Counter(part_of(f"text {index}") for index in range(5000))
    for part, share in PARTS.items():
        assert counts[part] / 5000 == pytest.approx(share, abs=0.03)


def test_training_conversations_use_training_prompts_alone_and_some_have_two_turns():
    rng = Random(0)
    turns = Counter()
    for _ in range(300):
        users = [m["content"] for m in conversation(rng) if m["role"] == "user"]
        turns[len(users)] += 1
        assert all(part_of(text) == "corpus" for text in users)
    assert set(turns) == {1, 2}
    assert turns[2] / 300 == pytest.approx(0.4, abs=0.1)


def test_every_word_of_the_corpus_is_in_the_vocabulary():
    known = set(vocabulary())
    for document in training_corpus(0, 400):
        texts = [document.text] + [m["content"] for m in document.conversation if m["role"] != "system"]
        assert set(split_words(" ".join(texts)).split()) <= known


def test_bare_facts_state_each_truth_once():
    facts = fact_sentences()
    assert ("the fox eats", "berries", "food") in facts
    assert ("the saw", "cuts planks", "use") in facts
    assert len(facts) == len({beginning + " " + slot for beginning, _, slot in facts})


def test_a_scene_ends_with_the_facts_of_what_it_is_about():
    first, request = scene(Random(0), "task", "evaluation")
    assert part_of(first) == "evaluation"
    assert request.words[0] in first
    assert scene_ending("animal", {"food": "nuts", "home": "tree"}) == "it found some nuts and ran home to the tree."
    assert set(SCENES) == {"animal", "task"}
