"""The prompts of the forms: families, sets, wordings, and that nothing is in two sets."""

from collections import Counter
from pathlib import Path

import yaml

from tasks.formats import prompts
from tasks.formats.build import mt_bench_questions
from tasks.formats.forms import CHECKS
from tasks.formats.prompts import FAMILIES, FORMS, PREFERRED, SIZES, all_prompts, of_part
from tasks.formats.samples import BEGINNINGS, EXAMPLES, INSTRUCTIONS, batches, instructed

PROMPTS = all_prompts()


def test_every_family_prefers_a_form_of_its_own_and_every_form_has_a_checker():
    assert set(FORMS) == set(CHECKS) == set(INSTRUCTIONS) == set(EXAMPLES)
    assert len(set(PREFERRED.values())) == len(FAMILIES)


def test_every_set_has_as_many_prompts_of_each_family_and_no_text_is_there_twice():
    assert Counter((p.part, p.family) for p in PROMPTS) == {(s, f): n for s, n in SIZES.items() for f in FAMILIES}
    texts = [" ".join(p.text.lower().split()) for p in PROMPTS]
    assert len(set(texts)) == len(texts) == len({p.id for p in PROMPTS})


def test_no_topic_is_in_two_prompts():
    entries = yaml.safe_load((Path(prompts.__file__).parent / "topics.yaml").read_text(encoding="utf-8"))
    assert set(entries) == set(FAMILIES)
    for family, entry in entries.items():
        asked = {p.text for p in PROMPTS if p.family == family}
        for topic in entry["topics"].split("|"):
            x, _, y = (part.strip() for part in " ".join(topic.split()).partition(" / "))
            texts = {wording.format(x=x, y=y, X=x[0].upper() + x[1:]) for wording in entry["wordings"]}
            assert len(texts & asked) <= 1, f"{family}: {topic}"


def test_no_family_is_known_by_how_its_prompts_begin():
    for family in FAMILIES:
        begins = Counter(" ".join(p.text.split()[:2]) for p in PROMPTS if p.family == family)
        assert max(begins.values()) <= 0.2 * begins.total()
        assert len(begins) >= 10


def test_a_familys_rejected_answers_have_the_other_forms_equally_often():
    for part in ("triples", "triples_heldout"):
        for family in FAMILIES:
            found = Counter(p.wrong for p in of_part(PROMPTS, part) if p.family == family)
            assert set(found) == set(FORMS) - {PREFERRED[family]}
            assert max(found.values()) - min(found.values()) <= 1
    assert {p.wrong for p in PROMPTS if not p.part.startswith("triples")} == {""}


def test_second_turns_follow_first_turns_of_their_own_set_and_of_another_family():
    by_id = {p.id: p for p in PROMPTS}
    seconds = [p for p in PROMPTS if p.after]
    for second in seconds:
        first = by_id[second.after]
        assert first.part == second.part and first.family != second.family and not first.after
    assert len({p.after for p in seconds}) == len(seconds)


def test_the_questions_have_two_turns_of_different_families():
    questions = mt_bench_questions(PROMPTS)
    family = {p.text: p.family for p in PROMPTS}
    assert len(questions) == SIZES["mt_bench"] * len(FAMILIES) / 2
    for question in questions:
        first, second = (family[turn] for turn in question["turns"])
        assert question["category"] == first != second
    assert Counter(q["category"] for q in questions) == dict.fromkeys(FAMILIES, SIZES["mt_bench"] // 2)


def test_another_seed_gives_other_prompts():
    assert {p.text for p in all_prompts(1)} != {p.text for p in PROMPTS}


def test_the_examples_of_an_instruction_have_its_form_and_begin_as_answers_are_begun():
    for form, examples in EXAMPLES.items():
        for answer in examples.values():
            assert CHECKS[form](answer) == 1.0
            assert answer.startswith(BEGINNINGS.get(form, ""))
    assert [turn["role"] for turn in instructed("x", "steps")[0]] == ["system", "user", "assistant", "user"]


def test_every_batch_has_prompts_of_all_families():
    for part in ("triples", "triples_heldout"):
        found = batches(PROMPTS, part)
        assert sorted(p.id for batch in found for p in batch) == sorted(p.id for p in of_part(PROMPTS, part))
        assert all({p.family for p in batch} == set(FAMILIES) for batch in found)
