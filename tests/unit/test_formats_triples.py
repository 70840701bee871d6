"""From samples to triples: what may be chosen or rejected, how samples are shortened, and pairs of equal length."""

from dataclasses import replace

import pytest

from tasks.formats.forms import CHECKS
from tasks.formats.prompts import Prompt
from tasks.formats.samples import Samples
from tasks.formats.triples import chosen_of, copies, figures, rejected_of, rows_of, shortened, triples_of

PROMPT = Prompt("t-1", "triples", "howto", "How do I descale a kettle?", "sentence")
STEPS = "1. Fill the kettle with vinegar.\n2. Heat it gently and wait.\n3. Rinse it with water."
SHORT = "1. Empty the kettle.\n2. Add vinegar.\n3. Wait."
SENTENCE = "Fill the kettle with vinegar, heat it gently, wait, and rinse it twice with water."
BRIEF = "Use vinegar in the kettle."


def samples(right, wrong):
    return Samples(PROMPT.id, tuple((t, True) for t in right), tuple((t, True) for t in wrong))


@pytest.mark.parametrize(
    ("text", "ended", "form", "kept"),
    [
        ("1. a b.\n2. c d.\n3. e", False, "steps", "1. a b.\n2. c d."),
        ("1. a b.\n2. c d.\n3. e", True, "steps", "1. a b.\n2. c d.\n3. e"),
        ("- a\n- b\n- c\n- d\n- e\n- f", False, "bullets", "- a\n- b\n- c\n- d"),
        ("One is here. Two is h", False, "sentence", "One is here."),
        ("One is h", False, "sentence", ""),
        ("One is here", True, "sentence", "One is here"),
        ("Dear friend,\n\nyou are right. And so", False, "letter", "Dear friend, you are right."),
        ('"Please close it. Or else', False, "quoted", '"Please close it."'),
        ('"Please close it." I hope this helps.', True, "quoted", '"Please close it."'),
        ('"Please close', False, "quoted", ""),
        ("On the one hand, it is cheap. On the other hand, it", False, "sides", "On the one hand, it is cheap."),
        ("", True, "letter", ""),
    ],
)
def test_samples_are_shortened_to_whole_parts(text, ended, form, kept):
    assert shortened(text, ended, form) == kept


def test_a_text_gets_no_further_sentence_when_it_is_long_enough_but_both_sides_stay():
    long = "This sentence alone has more than twenty words in it so that there is no need for another one behind it."
    assert shortened(f"{long} This one goes.", True, "letter") == long
    both = f"On the one hand, {long[0].lower()}{long[1:]} On the other hand, it is so. And this goes."
    assert shortened(both, True, "sides") == both.removesuffix(" And this goes.")


def test_pairs_have_lengths_as_equal_as_can_be_and_no_answer_twice():
    (first, second) = triples_of(PROMPT, samples([STEPS, SHORT], [BRIEF, SENTENCE]), None)
    assert (first["chosen"], first["rejected"]) == (STEPS, SENTENCE)
    assert (second["chosen"], second["rejected"]) == (SHORT, BRIEF)
    assert first["prompt"] == PROMPT.text and first["source"] == "t-1"
    assert len(triples_of(PROMPT, samples([STEPS, STEPS], [BRIEF, SENTENCE]), None)) == 1
    assert triples_of(PROMPT, samples([STEPS], []), None) == []


def test_a_turn_before_becomes_part_of_the_prompt():
    (row,) = triples_of(PROMPT, samples([STEPS], [SENTENCE]), ("Hello?", "Hello!"))
    assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
    assert row["prompt"][-1]["content"] == PROMPT.text


@pytest.mark.parametrize(
    "text",
    [
        "1. Fill the kettle.\n2. Heat it.",  # two steps
        "1. Kettle it.\n2. Kettle it.\n3. Kettle it.",  # one step three times
        "1. Take a banana.\n2. Peel and slice it.\n3. Eat it slowly.",  # another topic
        "1. Fill the kettle.\n2. Put an egg into it.\n3. Cool the egg.",  # from the instruction's example
        SENTENCE,
    ],
)
def test_what_may_not_be_chosen(text):
    assert chosen_of(PROMPT, samples([text], [])) == []
    assert chosen_of(PROMPT, samples([STEPS], [])) == [STEPS]


def test_what_may_not_be_rejected():
    assert rejected_of(PROMPT, samples([], [SENTENCE])) == [SENTENCE]
    assert rejected_of(PROMPT, samples([], [STEPS])) == []
    assert rejected_of(replace(PROMPT, wrong="letter"), samples([], [SENTENCE])) == []


def test_copies_of_an_example_are_found_unless_the_prompt_asks_for_them():
    assert copies("Cool it under the tap and dry the kettle.", "steps", PROMPT.text)
    assert copies("A comet passes.", "steps", PROMPT.text)
    assert not copies("A comet passes.", "steps", "When does the comet come?")
    assert not copies("On the one hand, a kettle is new. On the other hand, a kettle is old.", "sides", PROMPT.text)


def test_figures_count_what_was_kept_and_how_long_it_is():
    found = {PROMPT.id: samples([STEPS, "no"], [SENTENCE])}
    rows = rows_of([PROMPT], "triples", found, {})
    counted = figures([PROMPT], found, rows)
    assert counted["howto"] == counted["all"]
    assert counted["all"] | {"chosen_words": 0, "rejected_words": 0} == {
        "prompts": 1,
        "right_samples": 2,
        "right_good": 1,
        "wrong_samples": 1,
        "wrong_good": 1,
        "prompts_with_triples": 1,
        "triples": 1,
        "rejected_forms": {"sentence": 1},
        "chosen_words": 0,
        "rejected_words": 0,
        "longer_is_chosen": float(counted["all"]["chosen_words"] > counted["all"]["rejected_words"]),
    }
    assert counted["fact"]["triples"] == 0 and counted["fact"]["chosen_words"] is None


def test_shortening_keeps_the_form_of_its_examples():
    from tasks.formats.samples import EXAMPLES

    for form, examples in EXAMPLES.items():
        for answer in examples.values():
            assert CHECKS[form](shortened(answer, True, form)) == 1.0
