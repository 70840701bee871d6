"""The README's suite, commands and Python as they stand; commands of docs pages, and the method of CONTRIBUTING."""

import importlib
import json
import re
import shlex
import shutil
import textwrap

import click
import pandas as pd
import pytest
import typer
import yaml

from harness.data.refs import ModelRef
from harness.experiment.reference import suite_schema
from harness.experiment.suite import load_suite
from harness.model import AlignedModel
from harness.model.base import base_shape
from harness.plugins import HOME
from tests.conftest import WORDS

README = HOME / "README.md"
PAGES = [README, HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").glob("*.md"))]


def blocks(path, language: str) -> list[str]:
    """The fenced examples of a page."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(path) -> list[list[str]]:
    """The words of each command of ours that a page shows, without what a shell would do with them (| > &)."""
    text = "\n".join(blocks(path, "console")).replace("\\\n", " ")
    typed = re.findall(r"^\$ ((?:make|dspa-bench) .*)$", text, re.MULTILINE)
    return [shlex.split(re.split(r" [|>&]", line)[0], comments=True) for line in typed]


GIVEN = [(path, words) for path in PAGES for words in commands(path)]
SUITES = blocks(README, "yaml")


def test_there_is_something_to_try():
    assert len(SUITES) == 1
    assert sum(path == README for path, _ in GIVEN) >= 8


@pytest.mark.parametrize(("path", "words"), GIVEN, ids=[f"{path.stem}: {' '.join(words)}" for path, words in GIVEN])
def test_commands_are_there_with_these_options(path, words):
    from harness.cli.app import app

    program, *arguments = (word for word in words if word != "...")
    if program == "make":
        targets = re.findall(r"^(\w+):", (HOME / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
        return
    command, context = typer.main.get_command(app), None
    while isinstance(command, click.Group):  # each level is parsed, and none runs
        context = command.make_context(command.name, list(arguments), parent=context)
        _, command, arguments = command.resolve_command(context, [*context.protected_args, *context.args])
    assert command is not None
    command.make_context(command.name, list(arguments), parent=context)


@pytest.mark.parametrize("text", SUITES)
def test_a_suite_is_one_as_it_stands(text, tmp_path):
    (tmp_path / "suite.yaml").write_text(text)
    suite = load_suite(tmp_path / "suite.yaml")
    assert suite.file.report.baseline in [variant.name for variant in suite.variants]
    schema = pytest.importorskip("jsonschema").Draft202012Validator(suite_schema())
    assert [error.message for error in schema.iter_errors(yaml.safe_load(text))] == []


@pytest.fixture
def home(tmp_path, monkeypatch, data_folder, tiny_folders):
    """A folder with what the README's suite names: small models of our own, triples, and the data folder's files."""
    shutil.copytree(tiny_folders["gemma2"], tmp_path / "gemma")
    config = tmp_path / "gemma" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 8192}))
    shutil.copytree(tiny_folders["output"], tmp_path / "my_saes" / "layer_24")
    rows = [{"prompt": f"{a} {b}", "chosen": "w1 w2", "rejected": "w3"} for a in WORDS[:10] for b in WORDS[:25]]
    pd.DataFrame(rows).to_parquet(tmp_path / "ultrafeedback_250.parquet")
    monkeypatch.setenv("DSPA_BENCH_DATA", str(data_folder))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", SUITES)
def test_a_suite_passes_all_checks_on_small_models(text, home, tiny_folders, call):
    """Public names stand for files elsewhere: instead of them, folders; the rest is as it is written."""
    (home / "my_suite.yaml").write_text(text)
    small = ("base={path: gemma}", f"saes.early={{path: {tiny_folders['input']}}}")
    local = "benchmarks.multiple_choice.preset=paper_local"
    given = [word for change in (*small, local) for word in ("--set", change)]
    code, out, err = call("run", "my_suite.yaml", "--dry-run", *given)
    assert code == 0, err  # where datasets is new to files, its bars are on stderr
    assert "cells: 15, of which 15 to do" in out


def test_the_method_that_shows_how_to_add_one_is_a_method_in_a_file_of_its_own(
    tmp_path, tiny_base, tiny_folders, triples, monkeypatch
):
    from harness.compute import Meter
    from harness.experiment.reference import described
    from harness.method import METHODS

    (text,) = blocks(HOME / "CONTRIBUTING.md", "python")
    (tmp_path / "mean_shift.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("mean_shift")
    (shown,) = [one for one in described(METHODS) if one.name == "mean_shift"]
    assert [parameter.name for parameter in shown.parameters if not parameter.about] == []
    base = tiny_base("llama")
    method = METHODS["mean_shift"](layer=2)
    with pytest.raises(ValueError, match="which has layers 0 to 3"):
        METHODS["mean_shift"](layer=4).check(base_shape(ModelRef(path=str(tiny_folders["llama"]))))
    meter = Meter(base.model, sample_profile=False)
    with meter.running():
        fitted = method.fit(base, triples[:4], meter=meter, seed=0)
    assert meter.bill(method="mean_shift", n_triples=4).executed_flops > 0
    assert fitted.fingerprint != base.fingerprint
    fitted.save(tmp_path / "artifact")
    assert AlignedModel.load(tmp_path / "artifact").fingerprint == fitted.fingerprint


@pytest.mark.parametrize("text", blocks(README, "python"))
def test_python_runs(text, tmp_path, tiny_base, monkeypatch):
    tiny_base("llama").derive(method="base").save(tmp_path / "dspa-300")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(text, str(README), "exec"), found)
    assert found["model"].method == "base"
