"""The data files: right formats, right sizes, and no evaluation prompt that training or triples have seen."""

import json
from collections import Counter

import pytest

from harness.data.triples import contaminated, conversation, load_triples
from harness.judging.judge import Comparison
from tasks.sandbox.corpus import part_of, training_corpus
from tasks.sandbox.grammar import understand, without_opener
from tasks.sandbox.oracle import SandboxOracle
from tasks.sandbox.questions import SIZES, read_lines, write_data
from tasks.sandbox.world import FIRST, REGISTER_OF, WORLDS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, 0)
    return folder


@pytest.fixture(scope="module")
def evaluation_prompts(data):
    questions = read_lines(data / "mt_bench" / "question.jsonl")
    instructions = json.loads((data / "alpaca_eval" / "reference_outputs.json").read_text())
    safety = read_lines(data / "safety" / "harmful.jsonl") + read_lines(data / "safety" / "harmless.jsonl")
    return [
        *(turn for q in questions for turn in q["turns"]),
        *(row["instruction"] for row in instructions),
        *(row["prompt"] for row in safety),
    ]


def test_the_same_seed_writes_the_same_bytes(data, tmp_path):
    write_data(tmp_path, 0)
    for path in sorted(data.rglob("*")):
        if path.is_file():
            assert (tmp_path / path.relative_to(data)).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module", params=WORLDS)
def world_data(request, data, tmp_path_factory):
    """(world, folder of its data)."""
    world = WORLDS[request.param]
    if world is FIRST:
        return world, data
    folder = tmp_path_factory.mktemp(world.name)
    write_data(folder, world.seed, world)
    return world, folder


def test_triples_load_and_the_oracle_agrees_with_every_preference(world_data):
    world, folder = world_data
    triples = load_triples(folder / "triples.jsonl")
    assert len(triples) == SIZES["triples"]
    verdicts = SandboxOracle(world=world.name).compare([Comparison.of(t.prompt, t.chosen, t.rejected) for t in triples])
    assert all(v.value == 1 for v in verdicts)


def test_chosen_answers_begin_in_the_preferred_register_and_rejected_ones_in_another_that_is_spoken(world_data):
    world, folder = world_data
    for triple in load_triples(folder / "triples.jsonl") + load_triples(folder / "triples_heldout.jsonl"):
        request = understand(triple.prompt[-1]["content"])
        assert request is not None
        preferred = world.preferred[request.family]
        assert REGISTER_OF[triple.chosen.split()[0]] == preferred
        assert REGISTER_OF[triple.rejected.split()[0]] in set(world.spoken[request.family]) - {preferred}


def test_held_out_triples_share_no_prompt_with_the_training_triples(data):
    train, held_out = load_triples(data / "triples.jsonl"), load_triples(data / "triples_heldout.jsonl")
    assert len(held_out) == SIZES["triples_heldout"]
    assert not {t.prompt for t in map(_hashable, train)} & {t.prompt for t in map(_hashable, held_out)}


def test_families_are_equally_frequent_among_triples(data):
    counts = Counter(understand(t.prompt[-1]["content"]).family for t in load_triples(data / "triples.jsonl"))
    assert set(counts) == set(FIRST.preferred)
    assert min(counts.values()) > 0.14 * SIZES["triples"]


def test_no_evaluation_prompt_occurs_in_the_triples_or_twice(data, evaluation_prompts):
    triples = load_triples(data / "triples.jsonl") + load_triples(data / "triples_heldout.jsonl")
    assert contaminated(triples, evaluation_prompts) == []
    assert len(set(evaluation_prompts)) == len(evaluation_prompts)


def test_no_evaluation_prompt_occurs_in_the_training_corpus(evaluation_prompts):
    assert {part_of(prompt) for prompt in evaluation_prompts} == {"evaluation"}
    seen = {m["content"] for d in training_corpus(0, 1500) for m in d.conversation if m["role"] == "user"}
    assert not seen & set(evaluation_prompts)


def test_every_evaluation_prompt_is_one_the_oracle_understands(evaluation_prompts):
    assert all(understand(prompt) for prompt in evaluation_prompts)


def test_questions_have_fastchats_format_eight_categories_and_two_turns(data):
    rows = read_lines(data / "mt_bench" / "question.jsonl")
    assert [row["question_id"] for row in rows] == list(range(1, len(rows) + 1))
    assert Counter(row["category"] for row in rows).most_common()[-1][1] == SIZES["questions_a_category"]
    assert len({row["category"] for row in rows}) == 8
    assert all(len(row["turns"]) == 2 for row in rows)


def test_references_have_alpaca_evals_format_and_every_register(data):
    rows = json.loads((data / "alpaca_eval" / "reference_outputs.json").read_text())
    assert {key for row in rows for key in row} == {"instruction", "output", "generator", "dataset"}
    assert len(rows) == 4 * SIZES["instructions_a_family"]
    starts = Counter(REGISTER_OF[row["output"].split()[0]] for row in rows)
    assert min(starts.values()) > 0.1 * len(rows)


def test_no_request_of_the_triples_is_evaluated_even_with_another_opening_remark(data):
    trained = {
        without_opener(message["content"])
        for row in read_lines(data / "triples.jsonl")
        for message in row["prompt"]
        if message["role"] == "user"
    }
    asked = [turn for row in read_lines(data / "mt_bench" / "question.jsonl") for turn in row["turns"]]
    asked += [row["instruction"] for row in json.loads((data / "alpaca_eval" / "reference_outputs.json").read_text())]
    for name in ("harmful", "harmless"):
        asked += [row["prompt"] for row in read_lines(data / "safety" / f"{name}.jsonl")]
    assert trained.isdisjoint(without_opener(text) for text in asked)


@pytest.mark.parametrize("task", ["sandbox_facts", "sandbox_scenes"])
def test_multiple_choice_items_have_four_different_choices_and_no_favourite_position(data, task):
    rows = read_lines(data / "lm_eval" / f"{task}.jsonl")
    assert all(len(set(row["choices"])) == 4 for row in rows)
    golds = Counter(row["gold"] for row in rows)
    assert set(golds) == {0, 1, 2, 3}
    assert max(golds.values()) < 0.4 * len(rows)


def test_harmful_prompts_are_unsafe_and_harmless_ones_only_sound_so(data):
    harmful = [understand(r["prompt"]) for r in read_lines(data / "safety" / "harmful.jsonl")]
    harmless = [understand(r["prompt"]) for r in read_lines(data / "safety" / "harmless.jsonl")]
    assert len(harmful) == SIZES["harmful"]
    assert len(harmless) == SIZES["harmless"]
    assert all(r.family == "unsafe" for r in harmful)
    assert all(r.family == "advice" and r.borderline for r in harmless)


def _hashable(triple):
    from dataclasses import replace

    return replace(triple, prompt=tuple((m["role"], m["content"]) for m in conversation(triple.prompt)))
