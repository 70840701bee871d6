"""The suite file: what it accepts, and what it says about everything that is wrong, with the place."""

import json
import re
import tracemalloc
from pathlib import Path

import pytest
import yaml

from harness.experiment.check import check_suite
from harness.experiment.source import Source, parse_scalar
from harness.experiment.suite import load_suite
from tests.toys import write_suite


@pytest.fixture
def suite_path(tmp_path, tiny_folders) -> Path:
    return write_suite(tmp_path / "suite", tiny_folders["llama"])


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the tests look at the whole message
        check_suite(load_suite(path, overrides))
    return str(caught.value)


def line_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_a_good_suite_passes_and_its_names_become_objects(suite_path):
    suite = load_suite(suite_path)
    checked = check_suite(suite)
    assert len(checked.triples) == 12
    assert checked.notes == ()
    assert checked.prompts == {"toy_bench": 6}
    assert [v.method.scale for v in suite.variants[1:]] == [0.2]
    assert [values for values, _ in suite.variants[1].points] == [{"scale": 0.1}, {"scale": 0.3}]
    assert suite.judge.label == "toy-v1"


def test_relative_paths_start_at_the_suite_file_wherever_it_is_loaded_from(suite_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = load_suite(Path("suite") / "suite.yaml")
    folder = tmp_path / "suite"
    assert suite.file.triples.path == folder / "triples.jsonl"
    assert suite.benchmarks["toy_bench"].questions == folder / "questions.jsonl"


def test_the_resolved_suite_loads_from_another_folder_as_the_same_suite(suite_path, tmp_path):
    suite = load_suite(suite_path, ["variants.noise.params.scale=1e-3", "judge.model={path: a/b}"])
    elsewhere = tmp_path / "runs" / "x"
    elsewhere.mkdir(parents=True)
    (elsewhere / "suite.yaml").write_text(suite.to_yaml(elsewhere))
    again = load_suite(elsewhere / "suite.yaml")
    built = {"judge", "benchmarks", "variants"}  # of which the file keeps what was written, and the suite what it means
    assert again.file.model_dump(exclude=built) == suite.file.model_dump(exclude=built)
    assert (again.benchmarks, again.variants, again.judge) == (suite.benchmarks, suite.variants, suite.judge)
    assert str(tmp_path) not in yaml.safe_load(suite.to_yaml(elsewhere))["triples"]["path"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 0.001), ("0.5", 0.5), ("[1, 2]", [1, 2]), ("true", True), ("w", "w"), ("1.", 1.0)],
        *[('"\\ud83d\\ude00 é"', "😀 é"), ('"\\ud83d"', "\ud83d")],
    ],
)
def test_values_are_read_as_yaml_with_exponents_as_numbers(text, value):
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


def test_overrides_reach_entries_of_lists_by_name_and_by_number(suite_path):
    overrides = ["variants.noise.params.scale=0.7", "benchmarks.0.pause=2", "execution.workers=3", "budgets=[2]"]
    suite = load_suite(suite_path, overrides)
    assert suite.variants[1].method.scale == 0.7
    assert suite.benchmarks["toy_bench"].pause == 2
    assert suite.file.execution.workers == 3
    assert suite.file.budgets == (2,)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "write a.b=c"),
        ("a..b=1", "write a.b=c"),
        ("variants.nobody.label=x", "has no entry 'nobody'; it has: base, noise"),
        ("budgets.7=1", "has no entry '7'; it has: 0 to 1"),
        ("seed.deep=1", "'seed' is a single value and has no key 'deep'"),
        ("seed=[1", "cannot read '[1' as a YAML value"),
        ("sede=1", "--set sede=1: sede: unknown key 'sede'; known: name, seed, plugins, base"),
        ("variants.noise.params.scal=1", "--set variants.noise.params.scal=1: variants[1].params.scal: unknown key"),
    ],
)
def test_a_bad_override_is_refused_and_named(suite_path, override, expected):
    assert expected in refused(suite_path, override)


def test_an_unknown_key_is_refused_with_its_line_and_the_known_keys(suite_path):
    suite_path.write_text(suite_path.read_text() + "execution: {workers: 1, thread: 2}\nbudget: 4\n")
    message = refused(suite_path)
    assert (
        f"suite.yaml:{line_of(suite_path, 'thread')}: execution.thread: unknown key 'thread'; known: workers" in message
    )
    assert f"suite.yaml:{line_of(suite_path, 'budget: 4')}: budget: unknown key 'budget'; known: name, seed" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("scale: 0.2", "scal: 0.2", r"params\.scal: unknown key 'scal'; known: scale, sae, layer, shape"),
        ("scale: 0.2", "scale: big", r"params\.scale: give a number, got 'big'"),
        ("scale: 0.2", "sae: early", r"params\.sae: unknown SAE 'early'; the suite's `saes:` table has: none"),
        ("scale: 0.2", "sae: {path: x, id: y}", r"params\.sae: give either `path`"),
        ("scale: 0.2", "sae: {pat: x}", r"params\.sae\.pat: unknown key 'pat'; known: path, release, id"),
        (
            "method: toy_noise",
            "method: toy_nose",
            r"variants\[1\]\.method: unknown method 'toy_nose'; known: .*toy_noise",
        ),
        (
            "name: toy_bench",
            "name: toy_bank",
            r"benchmarks\[0\]\.name: unknown benchmark 'toy_bank'; known: .*toy_bench",
        ),
        (
            "questions: questions",
            "question: questions",
            r"benchmarks\[0\]\.question: unknown key 'question'; known: questions",
        ),
        ("kind: toy_judge", "kind: toy_jury", r"judge\.kind: unknown judge 'toy_jury'; known: .*toy_judge"),
        ("kind: toy_judge", "{kind: toy_judge, strictnes: 2}", r"judge\.strictnes: unknown key"),
        ("name: noise", "name: noise__n3", r"'noise__n3' cannot be a name"),
        ("name: noise", "name: base", r"variants\[1\]: the name 'base' is taken by another entry of variants"),
        (
            "baseline: base",
            "baseline: bass",
            r"report\.baseline: no variant is called 'bass'; the suite has: base, noise",
        ),
        ("- tests.toys", "- tests.toyz", r"plugins\[0\]: no Python module 'tests.toyz' to import"),
        ("- 4\n", "- 8\n", r"budgets\[1\]: budget 8 is given twice"),
        ("- 4\n", "- 0\n", r"budgets\[0\]: .*greater than or equal to 1"),
        ("seed: 5\n", "seed: 5\nseed: 6\n", r"key 'seed' is given twice \(first at .*suite\.yaml:2\)"),
        ("  sweep:\n    scale:", "  sweep:\n    scope:", r"sweep\.scope: unknown key 'scope'; known: scale"),
        ("    - 0.3", "    - 0.1", r"sweep\.scale: give a list of different values"),
        ("    - 0.3", "    - wide", r"sweep\.scale: .*give a number, got 'wide'"),
        ("budgets:\n- 4\n- 8\n", "budgets: 4\n", r"budgets: give a list, such as \[1, 2\], got 4$"),
        ("seed: 5\n", "seed: five\n", r"seed: give a whole number, got 'five'"),
        ("seeds: 2", "seeds: [2", r"suite\.yaml:\d+: not valid YAML"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_every_mistake_in_the_file_is_refused_at_its_line(suite_path, old, new, expected):
    text = suite_path.read_text().replace("judge:\n  kind: toy_judge", "judge: {kind: toy_judge}")
    if new.startswith("{"):
        old = "{kind: toy_judge}"
    assert old in text
    suite_path.write_text(text.replace(old, new))
    message = refused(suite_path)
    assert re.search(expected, message), message
    assert re.search(r"suite\.yaml:\d+: ", message), message


def test_the_line_named_is_that_of_the_offending_key(suite_path):
    suite_path.write_text(suite_path.read_text().replace("scale: 0.2", "scal: 0.2"))
    assert f"suite.yaml:{line_of(suite_path, 'scal: 0.2')}: " in refused(suite_path)


@pytest.mark.parametrize("key", ["name", "base", "triples", "budgets", "benchmarks", "variants"])
def test_a_missing_key_is_named(suite_path, key):
    data = yaml.safe_load(suite_path.read_text())
    del data[key]
    suite_path.write_text(yaml.safe_dump(data))
    assert f"missing key '{key}'" in refused(suite_path)


def test_a_suite_that_does_not_exist_or_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Source(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml: not UTF-8 text"):
        Source(tmp_path / "latin.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="expected a mapping"):
        Source(tmp_path / "list.yaml")


def test_what_aliases_stand_for_is_never_held_at_once():
    numbers, aliases = ", ".join(["1"] * 2000), ", ".join(["*a"] * 2000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 100,000 values, with what its aliases stand for"):
        parse_scalar(f"{{a: &a [{numbers}], b: [{aliases}]}}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20  # their four million places alone are twice that


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"prompt": "a", "chosen": "b"', "not valid JSON"),
        ('{"prompt": "a", "chosen": "b"}', "missing key 'rejected'"),
        ('{"prompt": "a", "chosen": " ", "rejected": "c"}', "'chosen' is empty"),
        ('{"prompt": "a", "chosen": "b", "rejected": ""}', "'rejected' is empty"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "'chosen' equals 'rejected'"),
    ],
)
def test_a_malformed_triple_is_refused_with_its_own_line(suite_path, row, expected):
    triples = suite_path.parent / "triples.jsonl"
    lines = triples.read_text().splitlines()
    triples.write_text("\n".join([*lines[:3], row, *lines[3:]]))
    message = refused(suite_path)
    assert f"triples.jsonl:4: {expected}" in message


def test_missing_files_and_sizes_that_do_not_fit_are_all_named_at_once(suite_path, tiny_folders):
    text = suite_path.read_text().replace("questions: questions.jsonl", "questions: none.jsonl")
    suite_path.write_text(text.replace("triples.jsonl", "no.jsonl") + "saes: {early: {path: nowhere}}\n")
    message = refused(suite_path, "base.path=gone")
    assert re.search(r"base: base model folder '.*gone' has no config.json", message)
    assert f"suite.yaml:{line_of(suite_path, 'saes:')}: saes.early: SAE folder" in message
    assert re.search(r"suite.yaml:\d+: triples.path: triples file .*no.jsonl' does not exist", message)
    assert re.search(r"benchmarks\[0\]: questions file .*none.jsonl' does not exist", message)


def test_a_base_folder_without_weights_is_refused(suite_path, tmp_path, tiny_folders):
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    (hollow / "config.json").write_text((tiny_folders["llama"] / "config.json").read_text())
    assert "has no weights" in refused(suite_path, f"base.path={hollow}")


def test_a_chat_format_that_does_not_exist_is_refused(suite_path):
    assert "should be 'auto', 'tokenizer' or 'hh' (got 'alpaca')" in refused(suite_path, "base.chat=alpaca")


def test_each_methods_own_check_is_asked_with_the_shape_of_the_base(suite_path):
    message = refused(suite_path, "variants.noise.params.layer=4")
    assert re.search(r"suite\.yaml:\d+: variants\[1\]: layer 4 is outside .*, which has layers 0 to 3", message)


def test_a_method_checks_every_point_of_a_sweep(suite_path):
    message = refused(suite_path, "variants.noise.sweep={layer: [1, 9]}")
    assert "variants[1].sweep: layer 9 is outside" in message


def test_a_budget_larger_than_the_data_is_refused(suite_path):
    message = refused(suite_path, "budgets=[4, 13]")
    assert "budgets[1]: budget 13 is larger than the data" in message
    assert "has 12 triples" in message


def test_a_repeated_triple_counts_once_and_is_said(suite_path):
    triples = suite_path.parent / "triples.jsonl"
    lines = triples.read_text().splitlines()
    triples.write_text("\n".join([*lines, lines[2]]))
    checked = check_suite(load_suite(suite_path))
    assert len(checked.triples) == 12
    (note,) = checked.notes
    assert note == (
        "triples.jsonl: 1 of 13 triples repeat an earlier one and count once, so that there are 12; lines 13 (as 3)"
    )
    assert f"has 12 triples ({note})" in refused(suite_path, "budgets=[13]")


def test_evaluation_prompts_among_the_training_prompts_are_refused(suite_path):
    questions = suite_path.parent / "questions.jsonl"
    questions.write_text(questions.read_text() + json.dumps("W3  w4") + "\n")
    message = refused(suite_path)
    assert "1 evaluation prompts of toy_bench also occur among the training prompts, first: 'W3  w4'" in message


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(suite_path, device):
    assert f"device {device!r} cannot be used" in refused(suite_path, f"execution.device={device}")


def test_a_bill_given_twice_is_refused_and_one_that_is_no_whole_number_too(suite_path):
    assert "flops_budgets[1]: budget 1000000000 is given twice" in refused(
        suite_path, "flops_budgets=[1e9, 1000000000]"
    )
    assert "flops_budgets[0]" in refused(suite_path, "flops_budgets=[0.5]")
