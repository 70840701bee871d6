"""What a suite can say: lists and descriptions of methods, benchmarks and judges, and the schema for editors."""

import json
import subprocess
import sys
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from harness.data.refs import ModelRef, SAERef
from harness.experiment.reference import REGISTRIES, Parameter, described, parameters, suite_schema
from harness.plugins import HOME, load_plugins
from tasks import SUITES

load_plugins()
OURS = [one for registry in REGISTRIES for one in described(registry) if not one.source.startswith("tests.")]


class Section(BaseModel):
    rate: float = Field(0.5, gt=0, le=1, description="a share")


class Example(BaseModel):
    sae: SAERef
    base: ModelRef | None = None
    size: Annotated[int, Field(ge=1, description="rows")] | None = 3
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = Field((), min_length=1)
    section: Section = Section()


def test_parameters_have_type_bounds_default_and_meaning_and_those_of_a_section_its_name():
    assert list(parameters(Example)) == [
        Parameter("sae", "SAE: a name of `saes:`, {path} or {release, id}", "", True, None, ""),
        Parameter("base", "model: {path} or {id, revision} or null", "", False, None, ""),
        Parameter("size", "whole number or null", ">= 1", False, 3, "rows"),
        Parameter("kind", "a | b", "", False, "a", ""),
        Parameter("names", "list of text", "not empty", False, [], ""),
        Parameter("section.rate", "number", "> 0; <= 1", False, 0.5, "a share"),
    ]


@pytest.mark.parametrize("one", OURS, ids=lambda one: f"{one.kind} {one.name}")
def test_everything_of_ours_says_what_it_and_its_parameters_are(one):
    assert len(one.summary) > 20
    assert not one.summary.startswith("arXiv")
    assert [parameter.name for parameter in one.parameters if not parameter.about] == []
    json.dumps(one.to_json())


def test_the_lists_and_descriptions_are_printed_and_as_json(call):
    code, out, _ = call("methods")
    assert code == 0
    assert "Direct Preference Optimization" in out
    listed = json.loads(call("benchmarks", "--json")[1])
    assert {"name", "summary", "source"} == set(listed[0])
    assert {"mt_bench", "preference"} <= {one["name"] for one in listed}
    assert "sandbox_oracle" in call("judges")[1]
    code, out, _ = call("describe", "dpo")
    assert code == 0
    assert "dpo: method of baselines.dpo" in out
    assert "learning_rate" in out
    (found,) = json.loads(call("describe", "dpo", "--json")[1])
    rate = next(one for one in found["parameters"] if one["name"] == "learning_rate")
    assert (rate["default"], rate["bounds"], rate["required"]) == (5e-6, "> 0", False)


def test_an_unknown_name_gets_the_nearest(call):
    code, _, err = call("describe", "mtbench")
    assert code == 2
    assert err.endswith("; did you mean 'mt_bench'?\n")


def validator():
    """Of suites by their schema; jsonschema is among the packages for development."""
    return pytest.importorskip("jsonschema").Draft202012Validator(suite_schema())


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_suites_of_the_package_are_valid_by_the_schema(path):
    from harness.experiment.source import Source

    assert [error.message for error in validator().iter_errors(Source(path).data)] == []


@pytest.mark.parametrize("given", [{"name": "mt_bench"}, {"name": "alpaca_eval", "reference": "v2"}])
def test_what_a_benchmark_finds_by_itself_is_not_asked_for(given):
    suite = yaml.safe_load((SUITES / "sandbox.yaml").read_text()) | {"benchmarks": [given]}
    assert [error.message for error in validator().iter_errors(suite)] == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": 3}, ["name"]),
        ({"benchmarks": [{"name": "alpaca_eval"}]}, ["benchmarks", 0]),
        ({"seedz": 3}, []),
        ({"budgets": 50}, ["budgets"]),
        ({"variants": [{"name": "x", "method": "dpoo"}]}, ["variants", 0, "method"]),
        ({"variants": [{"name": "x", "method": "dpo", "params": {"lr": 1}}]}, ["variants", 0, "params"]),
        ({"variants": [{"name": "x", "method": "dpo", "params": {"beta": 0}}]}, ["variants", 0, "params", "beta"]),
        ({"benchmarks": [{"name": "preference", "triple": "x"}]}, ["benchmarks", 0]),
        ({"judge": {"kind": "sandbox_oracle", "world": 3}}, ["judge"]),
    ],
)
def test_mistakes_are_found_by_the_schema_at_their_place(change, place):
    suite = yaml.safe_load((SUITES / "sandbox.yaml").read_text()) | change
    assert place in [list(error.absolute_path) for error in validator().iter_errors(suite)]


def test_the_schema_is_printed():
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from harness.cli import main; sys.argv[1:] = ['schema']; main()"],
        cwd=HOME, capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = json.loads(done.stdout)
    assert printed["title"] == "dspa-bench suite"
