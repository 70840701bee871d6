"""The tuning folder, the split of a budget and the altered preferences of controls."""

import json

import pytest

from harness.data.triples import Triple, conversation, prompt_count, split_budget, with_preferences
from harness.run_folder.tuning import Trial, TuningFolder


def trial(number: int) -> Trial:
    return Trial(
        trial=number, params={"alpha": 0.1 * number}, score=0.5, chosen=-1.0, passed=True, fit_flops=3, score_flops=4,
        seconds=0.1,
    )  # fmt: skip


def test_trials_are_appended_and_a_torn_line_is_neither_read_nor_kept(tmp_path):
    folder = TuningFolder(tmp_path / "tuning")
    assert (folder.trials, folder.best) == ((), None)
    folder.append(trial(1))
    path = tmp_path / "tuning" / "trials.jsonl"
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert folder.trials == (trial(1),)
    folder.append(trial(2))
    assert folder.trials == (trial(1), trial(2))
    assert folder.trials[0].executed_flops == 7
    path.write_bytes(whole[:-1])
    assert folder.trials == ()
    folder.append(trial(1))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["{}", "no json", json.dumps(trial(3).model_dump())])
def test_a_damaged_file_is_refused_at_its_line(tmp_path, line):
    folder = TuningFolder(tmp_path)
    folder.append(trial(1))
    path = tmp_path / "trials.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"trials\.jsonl:2: not a trial: .*rerun the suite"):
        _ = folder.trials


def triples_of(*prompts: str) -> list[Triple]:
    return [Triple(conversation(prompt), f"good {i}", f"bad {i}") for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize(("n", "share", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (8, 0.25, 2), (40, 0.25, 10)])
def test_a_split_is_by_prompt_exact_and_fixed_by_the_seed(n, share, expected):
    triples = triples_of(*(f"p{i}" for i in range(n)))
    kept, held_out = split_budget(triples, share, 3)
    assert len(held_out) == expected
    assert sorted(t.key for t in [*kept, *held_out]) == sorted(t.key for t in triples)
    assert kept == [t for t in triples if t in kept]
    assert split_budget(triples[::-1], share, 3)[1] == held_out[::-1]
    assert n < 8 or any(split_budget(triples, share, seed)[1] != held_out for seed in range(4, 9))


def test_prompts_that_differ_in_case_and_spacing_alone_stay_together():
    triples = triples_of(*[text for i in range(6) for text in (f"ask {i}", f"ASK  {i}")])
    assert prompt_count(triples) == 6
    kept, held_out = split_budget(triples, 0.5, 0)
    assert len(kept) == len(held_out) == 6
    told = [{t.prompt[0]["content"].lower().split()[1] for t in part} for part in (kept, held_out)]
    assert not told[0] & told[1]


def test_one_prompt_cannot_be_split():
    with pytest.raises(ValueError, match="3 triples on 1 prompt cannot be split by prompt"):
        split_budget(triples_of("a", "a", " A"), 0.5, 0)


def test_preferences_are_swapped_in_all_or_in_half_of_the_triples():
    triples = triples_of(*(f"p{i}" for i in range(9)))
    assert with_preferences(triples, "given", 1) == tuple(triples)
    turned = tuple(Triple(t.prompt, t.rejected, t.chosen) for t in triples)
    assert with_preferences(triples, "swapped", 1) == turned
    shuffled = with_preferences(triples, "shuffled", 1)
    assert sum(one == other for one, other in zip(shuffled, turned, strict=True)) == 4
    assert all(one in (a, b) for one, a, b in zip(shuffled, triples, turned, strict=True))
    assert with_preferences(triples[::-1], "shuffled", 1) == shuffled[::-1]
    assert any(with_preferences(triples, "shuffled", seed) != shuffled for seed in range(2, 6))
