"""The suites that come with the project load and pass every check that a run makes before its work."""

from pathlib import Path

import pytest
import yaml

from harness.experiment.check import check_suite
from harness.experiment.suite import load_suite
from tasks.sandbox.build import ASSETS

SUITES = Path(__file__).parents[2] / "tasks" / "suites"
FIRST, SECOND = "../sandbox/assets", "../../build/sandbox_second"


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_it_loads_and_passes_the_checks(name, tmp_path):
    text = (SUITES / f"{name}.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["name"] == name
    # The second world need not be built: in files it is like the first.
    copy = tmp_path / f"{name}.yaml"
    copy.write_text(text.replace(SECOND, str(ASSETS)).replace(FIRST, str(ASSETS)), encoding="utf-8")
    check_suite(load_suite(copy))


def test_the_second_world_gets_the_very_comparison_of_the_first():
    first, second = (
        yaml.safe_load((SUITES / f"sandbox_{name}.yaml").read_text(encoding="utf-8").replace(folder, "sandbox"))
        for name, folder in (("budgets", FIRST), ("second", SECOND))
    )
    assert second["judge"] == {**first["judge"], "world": "second"}
    own = ("name", "judge")
    assert {k: v for k, v in second.items() if k not in own} == {k: v for k, v in first.items() if k not in own}
