import json

import pytest
from typer.testing import CliRunner

from harness.cli.data import data
from harness.data.split import parse_parts
from harness.data.triples import Triple, conversation, load_triples, normal, triples_hash


def user(text):
    return {"role": "user", "content": text}


def rows(n=40):
    """Two triples on each prompt, one of them written with other case and spacing."""
    for i in range(n):
        yield {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        yield {"prompt": f"Question  {i}", "chosen": f"fine {i}", "rejected": f"poor {i}"}


def write(folder, found, name="pairs.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(folder / name)


def split(*arguments):
    return CliRunner().invoke(data, ["split", *map(str, arguments)])


def first_turns(path):
    return {normal(triple.prompt[0]["content"]) for triple in load_triples(path)}


def test_no_prompt_is_in_two_parts_and_every_triple_in_one(tmp_path):
    path = write(tmp_path, rows())
    parts = ["--part", "train=0.6", "--part", "heldout=0.2", "--part", "reward=0.2"]
    done = split(path, "--out", tmp_path / "out", *parts)
    assert done.exit_code == 0, done.output
    names = ("train", "heldout", "reward")
    found = {name: load_triples(tmp_path / "out" / f"{name}.jsonl") for name in names}
    assert [len(found[name]) for name in names] == [48, 16, 16]
    turns = [first_turns(tmp_path / "out" / f"{name}.jsonl") for name in names]
    assert not (turns[0] & turns[1] or turns[0] & turns[2] or turns[1] & turns[2])
    assert triples_hash(t for part in found.values() for t in part) == triples_hash(load_triples(path))
    said = json.loads((tmp_path / "out" / "split.json").read_text())
    assert said["seed"] == 0
    assert said["source"]["triples"] == 80
    for name in names:
        assert said["parts"][name]["hash"] == triples_hash(found[name])
        assert said["parts"][name]["triples"] == len(found[name])
        assert said["parts"][name]["prompts"] == len(found[name]) // 2
    assert f"{tmp_path}/out/heldout.jsonl: 16 triples on 8 prompts" in done.output


def test_the_same_data_and_seed_give_the_same_files_whatever_their_order(tmp_path):
    one, other = write(tmp_path, rows()), write(tmp_path, list(rows())[::-1], "turned.jsonl")
    for name, path, seed in (("a", one, 1), ("b", one, 1), ("c", one, 2), ("d", other, 1)):
        assert split(path, "--out", tmp_path / name, "--seed", seed).exit_code == 0
    train = [(tmp_path / name / "train.jsonl").read_text() for name in "abcd"]
    assert train[0] == train[1] != train[2]
    assert triples_hash(load_triples(tmp_path / "d/train.jsonl")) == triples_hash(
        load_triples(tmp_path / "a/train.jsonl")
    )
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "heldout.jsonl", "split.json", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip


def test_conversations_that_begin_alike_are_in_one_part(tmp_path):
    def pair(i, more):
        turns = [user(f"question {i}"), *more]
        return {"prompt": turns, "chosen": "yes", "rejected": "no"}

    answered = [{"role": "assistant", "content": "a"}, user("And then?")]
    path = write(tmp_path, [pair(i, more) for i in range(30) for more in ([], answered)])
    assert split(path, "--out", tmp_path / "out").exit_code == 0
    names = ("train", "validation", "heldout")
    turns = [first_turns(tmp_path / "out" / f"{name}.jsonl") for name in names]
    assert sum(map(len, turns)) == len(set.union(*turns)) == 30


def test_what_is_written_is_read_as_it_was(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    found = [
        {"chosen": [system, user(f"q{i}"), {"role": "assistant", "content": "a\u2028b"}], "source": "mine",
         "rejected": [system, user(f"q{i}"), {"role": "assistant", "content": "c"}]}
        for i in range(4)
    ]  # fmt: skip
    assert split(write(tmp_path, found), "--out", tmp_path / "out", "--part", "all=1").exit_code == 0
    triples = load_triples(tmp_path / "out" / "all.jsonl")
    assert triples[0] == Triple(conversation([system, user("q0")]), "a\u2028b", "c", "mine")
    assert triples == load_triples(tmp_path / "pairs.jsonl")


def test_shares_below_one_leave_triples_over_and_that_is_said(tmp_path):
    done = split(write(tmp_path, rows()), "--out", tmp_path / "out", "--part", "some=0.25")
    assert "left over: 60 triples on 30 prompts" in done.output
    assert json.loads((tmp_path / "out" / "split.json").read_text())["left_over"] == {"triples": 60, "prompts": 30}


def test_bad_rows_are_refused_or_left_out_and_named(tmp_path):
    found = list(rows(20))
    found[3] = {"prompt": "q", "chosen": "", "rejected": "x"}
    path = write(tmp_path, found)
    refused = split(path, "--out", tmp_path / "out")
    assert "pairs.jsonl:4: 'chosen' is empty" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    done = split(path, "--out", tmp_path / "out", "--bad-rows", "skip")
    assert "1 of 40 lines are no triples and left out: line 4; 4: 'chosen' is empty" in done.output
    said = json.loads((tmp_path / "out" / "split.json").read_text())["source"]
    assert said["bad_rows"] == [{"line": 4, "why": "'chosen' is empty"}]
    assert (said["rows"], said["triples"]) == (40, 39)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train"], "is no part; give NAME=SHARE"),
        (["train=much"], "is no part; give NAME=SHARE"),
        (["train=0"], "is no part; give NAME=SHARE"),
        (["train=1.5"], "is no part; give NAME=SHARE"),
        (["../train=0.5"], "is no part; give NAME=SHARE"),
        (["a=0.2", "a=0.2"], "the name 'a' is taken"),
        (["split=0.2"], "the name 'split' is taken"),
        (["a=0.8", "b=0.3"], "sum to 1.1; they must sum to at most 1"),
    ],
)
def test_parts_that_cannot_be_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_parts(texts)
    assert parse_parts(["a=0.7", "b=0.2", "c=0.1"]) == {"a": 0.7, "b": 0.2, "c": 0.1}


def test_an_empty_part_and_an_existing_folder_are_refused(tmp_path):
    path = write(tmp_path, rows(3))
    done = split(path, "--out", tmp_path / "out", "--part", "a=0.9", "--part", "b=0.01")
    assert "part 'b' would be empty: 0.01 of 3 different prompts is none" in str(done.exception)
    assert not (tmp_path / "out").exists()
    assert "exists already and is never overwritten" in str(split(path, "--out", tmp_path).exception)
