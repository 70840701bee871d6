import json
from dataclasses import replace

import pytest

from harness.data.triples import (
    Triple,
    TripleFile,
    contaminated,
    conversation,
    distinct,
    draw_budget,
    load_triples,
    split_by_prompt,
)


def triple(i: int, prompt: str | None = None) -> Triple:
    return Triple(conversation(prompt or f"question {i}"), f"good {i}", f"bad {i}")


POOL = [triple(i) for i in range(50)]


def write(tmp_path, *rows):
    path = tmp_path / "triples.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_a_prompt_may_be_a_string_or_a_conversation(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    path = write(
        tmp_path,
        {"prompt": "q", "chosen": "x", "rejected": "y", "source": "s"},
        "",
        {"prompt": turns, "chosen": "x", "rejected": "y"},
    )
    first, second = load_triples(path)
    assert first == Triple(conversation("q"), "x", "y", "s")
    assert [m["content"] for m in second.prompt] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", "not valid JSON"),
        (["a"], "expected a JSON object"),
        ({"prompt": "q", "chosen": "x"}, "missing key 'rejected'"),
        ({"prompt": "q", "chosen": "  ", "rejected": "y"}, "'chosen' is empty"),
        ({"prompt": "q", "chosen": "x", "rejected": ""}, "'rejected' is empty"),
        ({"prompt": "q", "chosen": 3, "rejected": "y"}, "'chosen' must be a string, got int"),
        ({"prompt": "q", "chosen": "x", "rejected": "x"}, "'chosen' equals 'rejected'"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "'prompt' is empty"),
        ({"prompt": [{"role": "bot", "content": "a"}], "chosen": "x", "rejected": "y"}, "role 'bot'; allowed: system"),
        ({"prompt": [{"role": "assistant", "content": "a"}], "chosen": "x", "rejected": "y"}, "must end with a user"),
        ({"prompt": [{"role": "user"}], "chosen": "x", "rejected": "y"}, "'prompt'[0] must be an object"),
    ],
)
def test_a_malformed_triple_is_refused_with_file_and_line(tmp_path, row, message):
    path = write(tmp_path, {"prompt": "q", "chosen": "x", "rejected": "y"}, row)
    with pytest.raises(ValueError, match=r"triples\.jsonl:2: ") as caught:
        load_triples(path)
    assert message in str(caught.value)


def test_a_missing_or_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_triples(tmp_path / "no.jsonl")
    with pytest.raises(ValueError, match="triples file is empty"):
        load_triples(write(tmp_path, ""))


def test_budgets_of_one_seed_are_nested_and_do_not_depend_on_the_order_of_the_file():
    small, large = draw_budget(POOL, 10, seed=1), draw_budget(POOL, 30, seed=1)
    assert large.triples[:10] == small.triples
    assert draw_budget(POOL[::-1], 30, seed=1) == large
    assert draw_budget(POOL, 10, seed=2).triples != small.triples


def test_the_budget_hash_identifies_triples_and_order():
    one = draw_budget(POOL, 10, seed=1)
    assert one.hash == draw_budget(POOL, 10, seed=1).hash
    assert len({one.hash, draw_budget(POOL, 11, seed=1).hash, draw_budget(POOL, 10, seed=2).hash}) == 3


def test_a_budget_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="budget 51 is larger than the data: 50"):
        draw_budget(POOL, 51, seed=0)


@pytest.mark.parametrize("size", [0, -3])
def test_a_budget_of_no_triples_is_refused(size):
    with pytest.raises(ValueError, match=f"budget {size} is too small"):
        draw_budget(POOL, size, seed=0)


def test_splitting_keeps_all_triples_of_a_prompt_together():
    pool = [triple(i, prompt=f"prompt {i % 20}") for i in range(200)]
    train, held_out = split_by_prompt(pool, 0.3, seed=0)
    assert len(train) + len(held_out) == 200
    assert {t.prompt[0]["content"] for t in train}.isdisjoint(t.prompt[0]["content"] for t in held_out)
    assert held_out
    assert split_by_prompt(pool, 0.0, seed=0) == (pool, [])


def test_contamination_ignores_case_and_spacing():
    assert contaminated(POOL, ["Question  3", "question 99"]) == ["Question  3"]


def test_a_triple_that_is_given_twice_counts_once_whatever_its_source():
    twice = [*POOL[:10], *(replace(t, source="again") for t in POOL[5:8])]
    assert distinct(twice) == POOL[:10]
    assert draw_budget(twice, 10, seed=1) == draw_budget(POOL[:10], 10, seed=1)
    with pytest.raises(ValueError, match="budget 11 is larger than the data: 10 triples, the 3 repeated ones once"):
        draw_budget(twice, 11, seed=1)


def test_a_file_names_the_lines_that_repeat_others(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    same = {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c", "source": "x"}
    rows = [row, {**row, "chosen": "d"}, same, row, row, row]
    path = write(tmp_path, "\n\n".join(map(json.dumps, rows)))
    assert TripleFile.read(path).notes == (
        "triples.jsonl: 4 of 6 triples repeat an earlier one and count once, so that there are 2; "
        "lines 5 (as 1), 7 (as 1), 9 (as 1) and 1 more",
    )
    assert TripleFile.read(write(tmp_path, json.dumps(row))).notes == ()


def test_real_budgets_hold_distinct_triples(data_folder):
    triples = load_triples(data_folder / "preferences" / "pandalm.jsonl")
    assert len(triples) == 836
    for seed in range(3):
        assert len({t.key for t in draw_budget(triples, 250, seed).triples}) == 250
    (said,) = TripleFile.read(data_folder / "preferences" / "pandalm.jsonl").notes
    assert "76 of 836 triples repeat an earlier one and count once, so that there are 760" in said
