"""A run goes on with a suite that grew: SAEs under new names, and one benchmark several times."""

import json
from pathlib import Path

import pytest
import yaml

from harness.experiment.reference import suite_schema
from harness.experiment.run import prepare, run_suite
from harness.experiment.suite import load_suite
from harness.run_folder import RunFolder
from reports.render import write_report
from reports.run import read_run
from tests.toys import NoProgress, cell_states, write_suite

FIRST = {"name": "plain", "method": "toy_noise", "params": {"sae": "one"}}
SECOND = {"name": "other", "method": "toy_noise", "params": {"sae": "two"}}
BASE = {"name": "base", "method": "toy_base"}


def suite(folder: Path, tiny_folders, variants: list, saes: dict[str, str], **changes) -> Path:
    found = {name: {"path": str(tiny_folders[kind])} for name, kind in saes.items()}
    settings = {"variants": variants, "saes": found, "budgets": [8], "seeds": 1} | changes
    return write_suite(folder, tiny_folders["llama"], **settings)


def run(path: Path, out: Path, *overrides: str, donors=()) -> set[str]:
    """The cells that were worked on."""
    progress = NoProgress()
    assert run_suite(prepare(path, out, overrides, donors), progress) == {}
    return {told[0] for told in progress.told if told[1] == "over"}


@pytest.mark.parametrize("before", [{"one": "input"}, {}])
def test_an_sae_under_a_new_name_extends_a_run(tmp_path, tiny_folders, before):
    old = [BASE, FIRST] if before else [BASE]
    first = suite(tmp_path / "first", tiny_folders, old, before)
    out = tmp_path / "run"
    run(first, out)
    states = cell_states(out)
    grown = suite(tmp_path / "grown", tiny_folders, [*old, SECOND], {**before, "two": "output"})
    assert run(grown, out) == {"other__n8__s0"}
    assert {name: state for name, state in cell_states(out).items() if name in states} == states
    assert set(read_run(out).environment.saes) == {*before, "two"}
    assert run(grown, out) == set()


def test_an_sae_that_cells_use_may_not_change_under_its_name_nor_go(tmp_path, tiny_folders):
    out = tmp_path / "run"
    run(suite(tmp_path / "first", tiny_folders, [BASE, FIRST], {"one": "input"}), out)
    changed = suite(tmp_path / "changed", tiny_folders, [BASE, FIRST], {"one": "output", "two": "input"})
    with pytest.raises(ValueError, match=r"suite\.saes\.one: .* there, .* here"):
        prepare(changed, out)
    gone = suite(tmp_path / "gone", tiny_folders, [BASE], {"two": "input"})
    with pytest.raises(ValueError, match=r"suite\.saes\.one: .* there, null here\n  variants\.plain: there"):
        prepare(gone, out)


def test_cells_are_reused_by_the_saes_that_they_name_whatever_else_is_in_the_table(tmp_path, tiny_folders):
    donor = tmp_path / "donor"
    run(suite(tmp_path / "first", tiny_folders, [BASE, FIRST, SECOND], {"one": "input", "two": "input"}), donor)
    other = suite(tmp_path / "other", tiny_folders, [BASE, FIRST, SECOND], {"one": "input", "two": "output"})
    assert run(other, tmp_path / "run", donors=[donor]) == {"other__n8__s0"}


TWICE = [
    {"name": "toy_bench", "questions": "questions.jsonl"},
    {"name": "toy_bench", "as": "short", "questions": "few.jsonl"},
]


def twice(folder: Path, tiny_folders, second: dict | None = None) -> Path:
    folder.mkdir()
    (folder / "few.jsonl").write_text("".join(json.dumps(f"w{i} w31") + "\n" for i in range(3)))
    return suite(folder, tiny_folders, [BASE], {}, benchmarks=[TWICE[0], {**TWICE[1], **(second or {})}])


def test_one_benchmark_is_there_twice_under_two_names(tmp_path, tiny_folders):
    path, out = twice(tmp_path / "suite", tiny_folders), tmp_path / "run"
    alone = suite(tmp_path / "alone", tiny_folders, [BASE], {})
    run(alone, out)
    before = RunFolder(out).cell("base__n0__s0").records("toy_bench")
    assert run(path, out) == {"base__n0__s0"}, "a second one extends the run"
    cell = RunFolder(out).cell("base__n0__s0")
    assert cell.records("toy_bench") == before
    assert {record.metric for record in cell.records("short") or ()} == {"short_evenness"}
    assert len(cell.records("short") or ()) == 3
    metrics = read_run(out).metrics
    assert {name: metric.title for name, metric in metrics.items()} == {
        "evenness": "Evenness",
        "short_evenness": "Evenness (short)",
    }
    assert "Evenness (short)" in write_report(out).read_text()
    kept = load_suite(out / "suite.yaml")
    assert list(kept.benchmarks) == ["toy_bench", "short"]
    assert yaml.safe_load((out / "suite.yaml").read_text())["benchmarks"][1]["as"] == "short"
    assert run(out / "suite.yaml", out) == set()


def test_a_metric_called_as_its_benchmark_takes_the_benchmarks_new_name(tmp_path, tiny_folders):
    made = load_suite(twice(tmp_path / "suite", tiny_folders)).benchmarks["short"]
    assert made.column("toy_bench", "short") == "short"
    assert made.column("toy_bench_win", "short") == "short_win"
    assert made.column("toy_bench_win", "toy_bench") == "toy_bench_win"


def test_settings_of_a_benchmark_are_overridden_under_its_name_here(tmp_path, tiny_folders):
    path = twice(tmp_path / "suite", tiny_folders)
    made = load_suite(path, ["benchmarks.short.pause=0.25"]).benchmarks
    assert [getattr(one, "pause", None) for one in made.values()] == [0.0, 0.25]


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"as": "toy_bench"}, "the name 'toy_bench' is taken by another entry of benchmarks; .*`as: NAME`"),
        ({"as": None}, "the name 'toy_bench' is taken by another entry of benchmarks; .*`as: NAME`"),
        ({"as": "records"}, "cannot use 'records': a cell has a file or folder of this name"),
        ({"as": "cell.json"}, "cannot use 'cell.json': a cell has a file or folder of this name"),
        ({"as": "toy_crash"}, "cannot use 'toy_crash': this is another benchmark's name"),
        ({"as": "a/b"}, r"benchmarks\[1\]\.as: 'a/b' cannot be a name"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(tmp_path, tiny_folders, second, complaint):
    with pytest.raises(ValueError, match=complaint):
        prepare(twice(tmp_path / "suite", tiny_folders, second), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_schema_of_suites_knows_the_second_name():
    section = suite_schema()["$defs"]["BenchmarkSection"]
    assert "as" in section["properties"]
    assert all("as" in branch["then"]["properties"] for branch in section["allOf"])
