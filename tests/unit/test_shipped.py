"""Suites by name from any folder, and a user's own files that would hide our packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.experiment.shipped import find_shipped, shipped
from harness.experiment.suite import load_suite
from harness.plugins import HOME
from tasks import SUITES
from tests.toys import write_suite

MODEL = HOME / "tasks" / "sandbox" / "assets" / "model"


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python on ``code`` in ``folder``, which it looks for modules in first, and in this checkout after it."""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(HOME)]), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=given, capture_output=True, text=True)


def test_every_suite_of_the_package_is_found_by_its_name_and_says_what_it_is(call):
    assert set(shipped()) == {path.stem for path in SUITES.glob("*.yaml")}
    assert all(suite.summary for suite in shipped().values())
    code, out, _ = call("run", "--list")
    assert code == 0
    assert all(name in out for name in shipped())


def test_a_suite_by_name_reads_its_own_files_and_keeps_its_runs_in_the_working_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = load_suite("sandbox", ["budgets=[50]"])
    assert suite.file.base.path == str(MODEL)
    assert suite.file.budgets == (50,)
    code, out, err = call("run", "sandbox", "--dry-run", "--set", "budgets=[50]", "--set", "seeds=1")
    assert (code, err) == (0, "")
    assert "sandbox in runs/sandbox" in out


def test_a_file_of_that_name_is_not_the_suite_that_comes_with_the_package(tmp_path, tiny_folders, monkeypatch):
    path = write_suite(tmp_path / "suite", tiny_folders["llama"])
    monkeypatch.chdir(path.parent)
    path.rename("sandbox")
    assert find_shipped("sandbox") is None
    assert load_suite("sandbox").file.base.path != str(MODEL)


def test_an_unknown_name_is_refused_with_those_that_there_are(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("run", "sandbx")
    assert code == 2
    assert "those that do: dspa_ablations," in err
    assert err.endswith("; did you mean 'sandbox'?\n")


def test_a_suite_that_needs_more_says_what_to_fetch_and_looks_for_it_in_the_working_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("run", "sandbox_second", "--dry-run")
    assert code == 2
    assert f"{tmp_path}/build/sandbox_second" in err
    assert err.endswith(
        "sandbox_second needs files that are fetched or made first, in this folder:\n"
        "  dspa-bench sandbox build --world second --out build/sandbox_second\n"
    )


def test_a_plugin_lies_beside_its_suite(tmp_path, tiny_folders, monkeypatch):
    path = write_suite(tmp_path / "suite", tiny_folders["llama"])
    (path.parent / "plugin_beside_its_suite.py").write_text("")
    path.write_text(path.read_text().replace("- tests.toys", "- tests.toys\n- plugin_beside_its_suite"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_suite(path).file.plugins[1] == "plugin_beside_its_suite"
    assert sys.path[-1] == str(path.parent)


@pytest.fixture
def crowded(tmp_path) -> Path:
    """A folder with modules and packages that are called like ours."""
    (tmp_path / "tasks.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    return tmp_path


def test_the_program_is_not_disturbed_by_files_of_the_names_of_its_packages(crowded):
    code = "import sys; from harness.cli import main; sys.argv = ['dspa-bench', 'run', '--list']; main()"
    done = python(code, crowded)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sandbox_full" in done.stdout
    # Worker processes get this very sys.path, so they find the same packages.
    found = python(
        "import sys; from harness.plugins import put_first; put_first(); import tasks; print(tasks)", crowded
    )
    assert str(HOME) in found.stdout


def test_in_a_script_they_are_refused_by_name(crowded):
    for code, hidden in (
        ("from harness.plugins import load_plugins; load_plugins()", "tasks.py"),
        ("from harness.plugins import REPORTS, declared; declared(REPORTS)", "reports"),
    ):
        done = python(code, crowded)
        assert done.returncode == 1
        name = hidden.removesuffix(".py")
        assert f"ValueError: {str(crowded / hidden)!r} hides dspa-bench's own package {name!r}" in done.stderr
