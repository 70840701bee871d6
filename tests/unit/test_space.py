"""What a suite may say of tuning, what of it is refused with its place, and the controls' preferences."""

import json
import re
from pathlib import Path

import pytest
import yaml

from harness.experiment.check import check_suite
from harness.experiment.plan import identify, make_plan
from harness.experiment.space import Choices, Span
from harness.experiment.suite import load_suite
from harness.run_folder import PlannedTuning
from tests.toys import write_suite

TUNED = {"scale": [0.1, 0.2, 0.3], "layer": {"low": 0, "high": 3}}


@pytest.fixture
def write(tmp_path, tiny_folders):
    def made(space=TUNED, params=None, variant=None, **changes) -> Path:
        noise = {"name": "noise", "method": "toy_noise", "params": {"scale": 0.2} | (params or {}), "tune": space}
        return write_suite(
            tmp_path / "suite",
            tiny_folders["llama"],
            variants=[{"name": "base", "method": "toy_base"}, noise | (variant or {})],
            **changes,
        )

    return made


def test_a_space_knows_its_sizes_and_the_variants_own_values(write):
    variant = load_suite(write()).variants[1]
    space = variant.space
    assert space is not None and variant.trials == 8
    assert space.dimensions == {
        "scale": Choices((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)),
        "layer": Span(0, 3, log=False, whole=True),
    }
    assert (space.own, space.holds_own, space.points) == ({"scale": 0.2, "layer": 0}, True, 12)
    grid = list(space.grid())
    assert len(grid) == 11 and space.own not in grid
    assert space.fits(8, frozenset({"scale"})) == 4
    assert space.fits(8, frozenset({"layer"})) == 3
    assert space.fits(8, frozenset()) == 8


def test_own_values_outside_the_space_are_one_more_point(write):
    variant = load_suite(write(space={"scale": [0.1, 0.3]})).variants[1]
    assert variant.space is not None
    assert (variant.space.own, variant.space.holds_own, variant.space.points) == ({"scale": 0.2}, False, 3)
    assert variant.trials == 3, "no combination is tried twice"


def test_a_range_is_of_floats_or_whole_numbers_as_the_method_takes_them(write):
    variant = load_suite(write(space={"scale": {"low": 0, "high": 1}})).variants[1]
    assert variant.space is not None
    assert variant.space.dimensions["scale"] == Span(0, 1, log=False, whole=False)
    assert variant.space.points is None


@pytest.mark.parametrize(
    ("tune", "more", "expected"),
    [
        ({"scope": [1, 2]}, {}, r"tune\.scope: unknown key 'scope'; known: scale"),
        ({"scale": 3}, {}, r"tune\.scale: give a list of values, or low, high and log \(got 3\)"),
        ({"scale": [0.1]}, {}, r"tune\.scale: give a list of at least two different values"),
        ({"scale": [1, 1.0]}, {}, r"tune\.scale: give a list of at least two different values"),
        ({"scale": [0.1, "wide"]}, {}, r"tune\.scale: .*give a number"),
        ({"scale": {"low": 2, "high": 1}}, {}, r"tune\.scale: low must be less than high"),
        ({"scale": {"low": 0, "high": 1, "log": True}}, {}, r"tune\.scale: .*begins above 0"),
        ({"scale": {"low": 0, "step": 1}}, {}, r"tune\.scale: a range has low, high and perhaps log; high: Field"),
        ({"layer": {"low": 0.5, "high": 2}}, {}, r"tune\.layer"),
        ({"layer": [0, 9]}, {}, r"tune\.layer: layer 9 is outside"),
        ({"layer": {"low": 0, "high": 9}}, {}, r"tune\.layer: layer 9 is outside"),
        ({"scale": {"low": 0, "high": 1}}, {"tune": {"search": "grid"}}, r"a grid has no ranges of floats"),
        (TUNED, {"tune": {"search": "grid"}}, r"the grid has 12 points.*there are 8 trials; give trials: 12"),
        (TUNED, {"tune": {"trials": 1}}, r"tune\.trials: .*greater than or equal to 2"),
        (TUNED, {"tune": {"validation": 1}}, r"tune\.validation: .*less than 1"),
        (TUNED, {"tune": {"score": "judge"}}, r"tune: score: judge needs 'max_new_tokens'"),
        (TUNED, {"tune": {"max_new_tokens": 9}}, r"'max_new_tokens' is for score: judge"),
        (TUNED, {"tune": {"score": "judge", "max_new_tokens": 9}, "judge": None}, r"tuning by the judge needs one"),
        (TUNED, {"budgets": [1, 8]}, r"budgets\[0\]: a budget of 1 triples with 1 prompt cannot be split for tuning"),
        ({}, {"variant": {"trials": 3}}, r"variants\[1\]\.trials: trials of a variant without 'tune'"),
        ({}, {"variant": {"preferences": "turned"}}, r"preferences: .*'given', 'swapped' or 'shuffled'"),
        ({}, {"variant": {"method": "toy_base", "params": {}, "preferences": "swapped"}}, r"uses no triples"),
        (TUNED, {"variant": {"method": "toy_base", "params": {}}}, r"so nothing can be tuned on them"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_place_before_any_work(write, tune, more, expected):
    path = write(space=tune, **more)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at
        check_suite(load_suite(path))
    assert re.search(expected, str(caught.value)), str(caught.value)
    assert re.search(r"suite\.yaml:\d+: ", str(caught.value))


def test_overrides_reach_the_settings_of_tuning(write):
    suite = load_suite(write(), ["tune.trials=3", "variants.noise.tune.scale=[0.2, 0.4]", "variants.noise.trials=5"])
    assert suite.variants[1].trials == 5
    assert suite.variants[1].space is not None
    assert suite.variants[1].space.dimensions["scale"] == Choices((0.2, 0.4), (0.2, 0.4))


def test_the_plan_says_what_reports_need_and_the_identity_what_results_depend_on(write, tmp_path):
    def identity(*overrides, **changes):
        suite = load_suite(write(**changes), overrides)
        triples = check_suite(suite).triples
        return identify(suite, make_plan(suite, tmp_path).cells, triples)["variants.noise"]

    suite = load_suite(write())
    planned = make_plan(suite, tmp_path).variants[1]
    assert planned.tuning == PlannedTuning(
        search="tpe", score="preference_margin", validation=0.25, floor=0.5, trials=8, space=TUNED
    )
    before = identity()
    assert before["tune"]["space"]["scale"] == [0.1, 0.2, 0.3]
    for change in ("tune.floor=0.4", "tune.search=random", "variants.noise.trials=5", "tune.validation=0.5"):
        assert identity(change) != before, change
    assert identity("variants.noise.tune.scale=[0.1, 0.2]") != before
    assert "tune" not in identity(space={}) and "preferences" not in identity(space={})
    assert identity(space={}, variant={"preferences": "swapped"})["preferences"] == "swapped"


def test_the_resolved_suite_is_the_same_from_another_folder_also_where_files_may_be_chosen(write, tmp_path, sae_refs):
    folder = Path(sae_refs[0].path)
    tune = {"sae": ["early", {"path": str(folder)}, None], "scale": {"low": 0.1, "high": 1.0, "log": True}}
    suite = load_suite(write(space=tune, saes={"early": {"path": str(sae_refs[1].path)}}))
    elsewhere = tmp_path / "runs" / "x"
    elsewhere.mkdir(parents=True)
    (elsewhere / "suite.yaml").write_text(suite.to_yaml(elsewhere))
    again = load_suite(elsewhere / "suite.yaml")
    assert [method for _, method in again.methods] == [method for _, method in suite.methods]
    assert yaml.safe_load((elsewhere / "suite.yaml").read_text())["variants"][1]["tune"]["sae"][0] == "early"
    triples = check_suite(suite).triples
    identities = [identify(one, make_plan(one, tmp_path).cells, triples) for one in (suite, again)]
    assert json.dumps(identities[0]) == json.dumps(identities[1])
