"""The checkers of forms, on answers written by hand: right ones, wrong ones, and ones made to fool them."""

import pytest

from tasks.formats import forms

STEPS = "1. Fill the kettle.\n2. Add vinegar.\n3. Wait and rinse."
BULLETS = "- Apples\n- Pears\n- Plums"
SENTENCE = "Lisbon is the capital of Portugal."
SIDES = "On the one hand, a cat is quiet and clean. On the other hand, a dog gets you out of the house."
LETTER = "Dear friend, I am sorry that you feel lonely. Join a club."
QUOTED = '"Would you please close the door?"'
RIGHT = {"steps": STEPS, "bullets": BULLETS, "sentence": SENTENCE, "sides": SIDES, "letter": LETTER, "quoted": QUOTED}


@pytest.mark.parametrize("form", forms.CHECKS)
def test_each_form_is_found_in_its_own_example_and_in_no_other(form):
    assert {other: score for other, score in forms.scores(RIGHT[form]).items() if score > 0.25} == {form: 1.0}
    assert forms.form_found(RIGHT[form]) == form


@pytest.mark.parametrize("text", ["", "   \n \n", "...", "-", "1.", "\n- \n"])
def test_an_answer_that_says_nothing_has_no_form(text):
    assert set(forms.scores(text).values()) == {0.0}
    assert forms.form_found(text) == "none"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (STEPS, 1),
        ("1) Fill it.\n2) Heat it.\n3) Rinse it.\n4) Dry it.", 1),
        ("**1.** Fill it.\n**2.** Heat it.\n**3.** Rinse it.", 1),
        ("Step 1: Fill it.\nStep 2: Heat it.\nStep 3: Rinse it.", 1),
        ("1. Fill it.\n\n2. Heat it.\n\n3. Rinse it.\n", 1),
        ("1. Fill it.\n2. Heat it.\n3. Rin", 1),  # cut off inside an item
        ("1. Fill it.\n2. Heat it.\n3. Rinse it.\n4.", 1),  # cut off behind a mark
        ("1. Fill it.\n2. Heat it.\n3.", 2 / 3),  # the third step is not there
        ("1. Fill it.\n2. Heat it.", 2 / 3),
        ("1. Fill it.", 0),
        ("Here you go:\n1. Fill it.\n2. Heat it.\n3. Rinse it.", 3 / 4),
        ("1. Fill it.\n2. Heat it.\n3. Rinse it.\nI hope that helps!", 3 / 4),
        ("3. Fill it.\n1. Heat it.\n2. Rinse it.", 0),
        ("1. Fill it.\n1. Heat it.\n1. Rinse it.", 1 / 3),
        ("2. Fill it.\n3. Heat it.\n4. Rinse it.", 0),
        ("1. Fill it.\n2. Fill it.\n3. Fill it.\n4. Fill it.", 1 / 3),  # the same step again and again
        ("1. Fill it. 2. Heat it. 3. Rinse it.", 0),  # not on lines of their own
        ("In 1999. it was cold.\nIn 2001. it was warm.", 0),
        ("1.5 litres\n2.5 litres\n3.5 litres", 0),
        (BULLETS, 0),
        ("First fill it, then heat it, then rinse it.", 0),
    ],
)
def test_steps(text, score):
    assert forms.steps(text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (BULLETS, 1),
        ("* Apples\n* Pears\n* Plums", 1),
        ("• Apples\n• Pears\n• Plums\n• Figs", 1),
        ("- Apples\n- Pears\n- Pl", 1),
        ("- Apples\n- Pears\n-", 2 / 3),
        ("- Apples\n- Pears", 2 / 3),
        ("- Apples", 0),
        ("- Apples\n- apples\n- APPLES!", 1 / 3),
        ("Some fruit:\n- Apples\n- Pears\n- Plums", 3 / 4),
        ("-Apples\n-Pears\n-Plums", 0),  # no space: not a list in Markdown
        (STEPS, 0),
        ("1. Fruit\n- Apples\n- Pears\n- Plums", 3 / 4),  # mixed
        ("Apples - Pears - Plums", 0),
        ("Apples, pears and plums.", 0),
    ],
)
def test_bullets(text, score):
    assert forms.bullets(text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (SENTENCE, 1),
        ("It has 3.5 million people.", 1),
        ("Dr. Smith met Mr. J. Brown in Washington D.C. in May.", 1),
        ("It is a large city, e.g. for Europe, and lies by the sea!", 1),
        ("Lisbon is the capital of Portugal", 0.5),
        ("Lisbon is the capital of Portugal, a country in the south-west of Eur", 0.5),  # cut off
        ("It is Lisbon. It lies by the sea.", 0.25),
        ("It is Lisbon. It lies by the s", 0.25),
        ("It is Lisbon. It lies by the sea. It is old.", 0),
        ("It is Lisbon\nIt lies by the sea\nIt is old", 0),
        ("Is it Lisbon?", 0),
        (QUOTED, 0),
        (STEPS, 0),
        (BULLETS, 0),
        ("No!!! It is Lisbon.", 0.25),
    ],
)
def test_sentence(text, score):
    assert forms.sentence(text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (SIDES, 1),
        ("On one hand it is cheap and easy; on the other it breaks very soon.", 1),
        ("on the one Hand, tea is mild and cheap. On the Other Hand, coffee is strong.", 1),
        (SIDES.removesuffix("of the house.") + "of", 1),  # cut off behind both sides
        ("On the one hand, a cat is quiet and clean.", 0),
        ("On the one hand, a cat is quiet and clean. On the other hand,", 0),  # cut off before the second
        ("On the one hand, a cat is quiet. On the other hand, a cat", 0),
        ("On the other hand, a dog is loyal. On the one hand, a cat is clean.", 0),
        ("On the one hand. On the other hand.", 0),
        ("On the one hand, cats are clean. On the other hand, cats are clean.", 0.5),
        ("Well, that depends on you. " + SIDES, 1 - 5 / 27),
        ("1. On the one hand, cats are clean.\n2. On the other hand, dogs are loyal.", 0),
        ("A cat is quiet, but a dog gets you out of the house.", 0),
    ],
)
def test_sides(text, score):
    assert forms.sides(text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (LETTER, 1),
        ("Dear Anna,\n\nI am sorry that you feel lonely.\n\nYours, Tom", 1),
        ("Hello dear Anna, how good to hear from you today.", 1),
        ("Dear friend, I am sorry that you feel lon", 1),  # a letter's end is not asked for
        ("Dear friend,", 0),
        ("Dear friend, I am sorry.", 0),
        ("I am sorry, dear friend, that you feel lonely in the city.", 0),
        ("Hi there. I am sorry that you feel lonely.", 0),  # nobody is addressed with a comma
        ("Dear friend,\n1. Go out and meet people.\n2. Join a club.\n3. Smile.", 0),
        ("Dearest memories of the sea, I miss you so very much.", 0),
        (SENTENCE, 0),
    ],
)
def test_letter(text, score):
    assert forms.letter(text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (QUOTED, 1),
        ("“Would you please close the door?”", 1),
        (' "Please be so kind and close it." \n', 1),
        ('"Would you please close the', 0.5),  # never closed: cut off
        ('Here it is: "Would you please close the door?"', 0.5 * 6 / 9),
        ('"Would you please close the door?" I made it more polite.', 0.5 * 6 / 11),
        ('"Please close it." or "Close it, please."', 0.5),
        ('""', 0),
        ('"', 0),
        ("Would you please close the door?", 0),
        ("It's the dog's door, isn't it?", 0),  # apostrophes are no quotation marks
        ('"One."\n- "Two."\n- "Three."', 0),
    ],
)
def test_quoted(text, score):
    assert forms.quoted(text) == pytest.approx(score)


def test_a_prompt_that_is_only_repeated_has_at_most_the_form_it_was_written_in():
    assert forms.form_found("Can you tell me how to descale a kettle?") == "none"


def test_mixed_forms_earn_less_than_either_alone():
    mixed = f"{STEPS}\n{BULLETS}"
    assert forms.steps(mixed) == pytest.approx(0.5)
    assert forms.bullets(mixed) == pytest.approx(0.5)
