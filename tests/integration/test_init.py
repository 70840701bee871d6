"""A first suite of a user's own: `init` on a model and a TRL-format file, the plan of what it wrote, and a tiny run."""

import json
import os
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from harness.data.triples import contaminated, load_triples
from harness.experiment.suite import load_suite
from tests.conftest import WORDS
from tests.integration.test_data_in import as_implicit

SMALL = ("--set", "budgets=[8]", "--set", "seeds=1", "--set", "benchmarks.answers.limit=2")
SMALL += ("--set", "variants.sft.tune={}", "--set", "variants.dpo.tune={}", "--set", "variants.caa.tune={}")
COMMENTED = ("run", "train-sae")


@pytest.fixture
def pairs(tmp_path):
    """60 triples in TRL's implicit form, in Parquet."""
    words = [WORDS[n % len(WORDS)] for n in range(200)]
    rows = [
        {"prompt": " ".join(words[n : n + 4]) + f" w{n % 7}" * (n % 3), "chosen": "w1 w2", "rejected": f"w{n % 5} w3"}
        for n in range(60)
    ]
    path = tmp_path / "pairs.parquet"
    pd.DataFrame([as_implicit(row) for row in rows]).to_parquet(path)
    return path


def test_what_it_writes_passes_the_checks_and_runs_as_it_is(call, pairs, tiny_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("init", "mine", "--base", tiny_folders["llama"], "--triples", pairs)
    assert (code, err) == (0, "")
    assert "4 layers of width 32, context of 256 tokens" in out
    assert out.endswith("next: dspa-bench run mine/suite.yaml --dry-run\n")
    suite = load_suite("mine/suite.yaml")
    assert suite.file.name == "mine"
    assert [variant.name for variant in suite.variants] == ["base", "caa", "sft", "dpo"]
    train, held_out = (load_triples(f"mine/suite-data/{name}.jsonl") for name in ("train", "heldout"))
    assert held_out
    assert not contaminated(train, [one.prompt[-1]["content"] for one in held_out])

    code, out, err = call("run", "mine/suite.yaml", "--dry-run", *SMALL)
    assert (code, err) == (0, "")
    for text in (
        "cells: 4, of which 4 to do",
        "time, an estimate: at least",
        "disk, an estimate: at most",
        "answers: 8 of",
    ):
        assert text in out

    code, out, err = call("run", "mine/suite.yaml", *SMALL, "-v")
    assert (code, err) == (0, "")
    assert "[4/4] " in out
    assert "Preference accuracy (%)" in out
    assert out.endswith("report: runs/mine/report/report.html\n")


def test_the_commands_in_its_comments_work_where_init_was_given(call, pairs, tiny_folders, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    base = os.path.relpath(tiny_folders["llama"])
    code, _, err = call("init", "my own", "--base", base, "--triples", pairs, "--name", "mine")
    assert (code, err) == (0, "")
    assert load_suite("my own/suite.yaml").file.base.path == str(tiny_folders["llama"])
    lines = Path("my own/suite.yaml").read_text().splitlines()
    run, train = (next(line for line in lines if re.match(rf" *# +dspa-bench {name}", line)) for name in COMMENTED)
    code, out, err = call(*shlex.split(run.split("     ")[0])[2:], *SMALL)
    assert (code, err) == (0, "")
    assert "cells: 4, of which 4 to do" in out
    code, out, err = call(*shlex.split(train)[2:], "--batch-size", 16, "--dry-run")
    assert (code, err) == (0, "")
    assert "for layers 0, 2" in out
    assert train.endswith("--out 'my own/saes'")


def test_what_is_not_given_is_asked_for(call, pairs, tiny_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", StringIO(f"{tiny_folders['llama']}\n{pairs}\nbase, sft\n\n"))
    code, _, err = call("init", tmp_path / "asked.yaml")
    assert (code, err) == (0, "")
    suite = load_suite(tmp_path / "asked.yaml")
    assert ([variant.name for variant in suite.variants], suite.file.name) == (["base", "sft"], "asked")


def test_with_saes_dspa_is_among_the_methods(call, pairs, tiny_folders, tmp_path):
    saes = ["--input-sae", tiny_folders["input"], "--output-sae", tiny_folders["output"]]
    given = [
        "--base",
        tiny_folders["llama"],
        "--triples",
        pairs,
        *saes,
        "--budget",
        20,
        "--budget",
        40,
        "--name",
        "two",
    ]
    code, _, err = call("init", tmp_path / "suite.yaml", *given)
    assert (code, err) == (0, "")
    suite = load_suite(tmp_path / "suite.yaml")
    assert suite.file.budgets == (20, 40)
    assert suite.variants[-1].name == "dspa"
    assert suite.file.saes["early"].path == str(tiny_folders["input"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--method", "sfft"], "unknown method 'sfft'; known: .*; did you mean 'sft'"),
        (["--method", "dspa"], "method 'dspa' needs SAEs: give --input-sae FOLDER and --output-sae FOLDER"),
        (["--budget", "100"], "--budget 100: there are 4. triples to fit on, after 20% are held out"),
        (["--input-sae", "x"], "give both --input-sae and --output-sae"),
        (["--name", "a b"], "'a b' cannot be a name"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(call, pairs, tiny_folders, tmp_path, more, expected):
    code, _, err = call("init", tmp_path / "new", "--base", tiny_folders["llama"], "--triples", pairs, *more)
    assert code == 2
    assert re.search(expected, err), err
    assert [path for path in tmp_path.rglob("new/*") if path.exists()] == []


def test_nothing_is_overwritten(call, pairs, tiny_folders, tmp_path):
    (tmp_path / "suite.yaml").write_text(json.dumps("mine"))
    code, _, err = call("init", tmp_path, "--base", tiny_folders["llama"], "--triples", pairs)
    assert code == 2
    assert "exists already and is never overwritten" in err
    assert json.loads((tmp_path / "suite.yaml").read_text()) == "mine"
