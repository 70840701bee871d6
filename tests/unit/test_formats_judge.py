"""The judge of forms: ratings, comparisons, what it says of each check, and what it refuses."""

import json

import pytest

from harness.data.triples import Message, conversation
from harness.judging import Answer, Comparison, Rating
from tasks.formats.content import content_of, repetition_of, shared_words
from tasks.formats.verifiable import Verifiable

HOWTO, FACT, FEELING = "How do I descale a kettle?", "Tell me which city is the capital of Portugal.", "I feel lonely."
STEPS = "1. Fill the kettle with water.\n2. Add vinegar and wait.\n3. Rinse it twice."
SENTENCE = "The capital of Portugal is Lisbon."


@pytest.fixture
def prompts_file(tmp_path):
    rows = [("a", "howto", HOWTO), ("b", "fact", FACT), ("c", "feelings", FEELING)]
    lines = [json.dumps({"id": i, "part": "mt_bench", "family": family, "text": text}) for i, family, text in rows]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def judge(prompts_file):
    return Verifiable(families=prompts_file)


def rated(judge, prompt, answer):
    turns = prompt if isinstance(prompt, tuple) else conversation(prompt)
    (verdict,) = judge.rate([Rating((*turns, Message(role="assistant", content=answer)))])
    return verdict


def test_an_answer_in_the_preferred_form_earns_ten_and_in_another_form_what_content_alone_earns(judge):
    assert rated(judge, HOWTO, STEPS).value == pytest.approx(10)
    prose = "Fill the kettle with water, add vinegar and wait, then rinse it twice."
    assert rated(judge, HOWTO, prose).value == pytest.approx(1 + 9 * 0.2)
    assert rated(judge, FACT, SENTENCE).value == pytest.approx(10)
    assert rated(judge, FACT, f"1. {SENTENCE}\n2. It lies by the sea.\n3. It is old.").value == pytest.approx(2.8)


def test_the_same_form_is_right_in_one_family_and_wrong_in_another(judge):
    kettle = "The kettle needs vinegar and hot water."
    assert rated(judge, FACT, SENTENCE).value > 9 > 3 > rated(judge, HOWTO, kettle).value


def test_the_family_is_that_of_the_last_user_turn(judge):
    turns = (*conversation(HOWTO), Message(role="assistant", content=STEPS), Message(role="user", content=FACT))
    assert rated(judge, turns, SENTENCE).value == pytest.approx(10)
    assert rated(judge, turns, STEPS).value < 3


@pytest.mark.parametrize("answer", ["", "  \n", "..."])
def test_an_empty_answer_earns_one(judge, answer):
    assert rated(judge, FACT, answer).value == pytest.approx(1)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (HOWTO, "\n".join(f"{i}. Clean the kettle with water." for i in range(1, 12))),  # one step again and again
        (HOWTO, "1. kettle\n2. kettle kettle\n3. kettle kettle kettle kettle kettle kettle kettle kettle"),
        (FACT, "Tell me which city is the capital of Portugal."),  # the prompt again
        (FACT, "Lisbon " + "is the city that is the city that " * 30 + "end."),
        (FACT, "Portugal's capital " + "goes on and on with other words " * 60 + "."),
    ],
)
def test_answers_that_only_play_the_form_earn_little(judge, prompt, answer):
    assert rated(judge, prompt, answer).value < 4


def test_an_answer_off_the_topic_loses_a_part_but_a_feeling_needs_no_word_of_the_prompt(judge):
    assert rated(judge, FACT, "Bananas grow in warm places.").value == pytest.approx(1 + 9 * 0.6)
    assert rated(judge, FEELING, "Dear friend, let us go for a walk soon.").value == pytest.approx(10)


def test_the_verdict_says_item_by_item_what_was_checked(judge):
    raw = rated(judge, HOWTO, SENTENCE).raw
    for said in ("howto prompt", "preferred form steps", "found: sentence", "form 0.00", "length 1.00 (6 words)"):
        assert said in raw
    for said in (
        "repetition 1.00",
        "topic 0.60 (shared: none)",
        "echo 1.00",
        "surprise 1.00 (not asked for)",
        "rating",
    ):
        assert said in raw


def test_an_unknown_prompt_is_an_error_and_no_rating(judge):
    verdict = rated(judge, "Who are you?", SENTENCE)
    assert verdict.value is None
    assert "knows only the prompts of prompts.jsonl; not 'Who are you?'" in str(verdict.error)


def test_comparisons_prefer_the_form_and_tie_where_ratings_are_equal(judge):
    known, unknown = conversation(HOWTO), conversation("Who are you?")
    good = Comparison.of(known, STEPS, SENTENCE)
    same = Comparison.of(known, STEPS, STEPS + "\n4. Dry it.")
    found = judge.compare([good, good.swapped, same, Comparison.of(unknown, "a", "b")])
    assert [verdict.value for verdict in found] == [1.0, 2.0, 1.5, None]
    assert "first: howto prompt" in found[0].raw and "second: howto prompt" in found[0].raw


def test_it_says_nothing_of_harm_and_refusals(judge):
    assert judge.verbs == {"rate", "compare"}
    asked = [Answer(conversation(FACT), SENTENCE)]
    for verdict in (*judge.harm(asked), *judge.refusal(asked)):
        assert verdict.value is None
        assert "cannot say" in str(verdict.error)


def test_a_base_that_finds_the_answer_unlikely_takes_from_the_rating(prompts_file, tiny_folders):
    prompts_file.write_text(json.dumps({"id": "a", "part": "p", "family": "fact", "text": "w1 w2 w3"}))
    base = {"path": str(tiny_folders["llama"])}
    answer = "w1 w4 w5 w6."
    ratings = []
    for limit in (100.0, 0.01):
        judge = Verifiable.model_validate({"families": prompts_file, "base": base, "max_nats": limit})
        judge.check()
        verdict = rated(judge, "w1 w2 w3", answer)
        assert f"nats a token of {limit:g}" in verdict.raw
        ratings.append(verdict.value)
    assert ratings == [pytest.approx(10), pytest.approx(1)]
    assert judge.label.startswith("verifiable-v1-")
    assert f"up to {limit:g} nats a token" in judge.statement
    too_long = rated(judge, "w1 w2 w3", "w1 " * 300)
    assert too_long.value is None and "do not fit the context" in str(too_long.error)
    assert rated(judge, "w1 w2 w3", "").value == pytest.approx(1)


def test_the_judge_without_a_base_says_so(judge):
    assert judge.label == "verifiable-v1"
    assert "nobody looked at" in judge.statement
    assert "not whether it is true" in judge.statement


def test_check_refuses_what_cannot_serve(tmp_path, prompts_file):
    with pytest.raises(ValueError, match=r"prompts file .* does not exist"):
        Verifiable(families=tmp_path / "none.jsonl").check()
    with pytest.raises(ValueError, match=r"does not exist|has no config"):
        Verifiable.model_validate({"families": prompts_file, "base": {"path": str(tmp_path / "none")}}).check()
    row = {"id": "a", "part": "p", "family": "poems", "text": "x"}
    prompts_file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"prompts.jsonl:1: unknown family 'poems'; known: howto, fact"):
        Verifiable(families=prompts_file).check()
    prompts_file.write_text("\n".join([json.dumps(row | {"family": "fact"})] * 2))
    with pytest.raises(ValueError, match=r"prompts.jsonl:2: the text stands there twice"):
        Verifiable(families=prompts_file).check()
    prompts_file.write_text(json.dumps({"id": "a", "part": "p", "family": "fact"}))
    with pytest.raises(ValueError, match=r"prompts.jsonl:1: missing text"):
        Verifiable(families=prompts_file).check()


def test_repetition_counts_three_word_runs_without_the_numbers_of_steps():
    assert repetition_of("one two three") == 1
    assert repetition_of("a b c a b c a b c") == pytest.approx(3 / 7)
    assert repetition_of("1. a b c\n2. a b c") == pytest.approx(3 / 4)


def test_words_count_as_shared_by_their_beginnings_and_common_ones_never():
    assert shared_words("How do I clean the kettles?", "Cleaning a kettle is what you should do.") == [
        "clean",
        "kettles",
    ]
    assert shared_words("What can you tell me?", "What I can tell you.") == []


def test_an_echo_is_the_prompt_said_again_and_not_an_answer_that_takes_up_its_words():
    assert content_of(HOWTO, "How do I descale a kettle?", "howto").echo == 0
    assert content_of(HOWTO, '"descale a kettle"', "howto").echo == 0
    assert content_of(HOWTO, "To descale a kettle, use vinegar.", "howto").echo == 1
    assert content_of(HOWTO, "", "howto").echo == 1
