"""A new user's way by the commands of the README: a wheel in a fresh environment, a model and data of one's own.

The fresh environment borrows the heavy packages from the one that runs the tests, by a path and not by its .pth files;
so it sees nothing of this checkout, though that may be installed there in place.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from harness.plugins import HOME
from tests.conftest import WORDS

MOST_COMMANDS = 6
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "examples")


class User:
    """Someone in an empty folder; counts the commands given, each of which has to succeed and complain of nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.commands = folder, folder / ".venv" / "bin", 0
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST"}
        self.environment = {key: value for key, value in os.environ.items() if key not in hidden}
        self.environment |= {"OMP_NUM_THREADS": "1", "DSPA_BENCH_DATA": str(folder)}

    def __call__(self, *command: object) -> str:
        self.commands += 1
        return self.look(*command)

    def look(self, *command: object) -> str:
        """What it prints, uncounted."""
        said = subprocess.run(
            [str(word) for word in command], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert (said.returncode, said.stderr) == (0, ""), f"{command}\n{said.stdout}\n{said.stderr}"
        return said.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the files that make it; the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    project = tomllib.loads((HOME / "pyproject.toml").read_text())
    for name in ("pyproject.toml", project["project"]["readme"], "LICENSE"):
        shutil.copy(HOME / name, folder)
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        shutil.copytree(HOME / pattern.removesuffix("*"), folder / pattern.removesuffix("*"), ignore=LEFT_OUT)
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", str(folder / "out"), "."]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (path,) = (folder / "out").glob("dspa_bench-*.whl")
    return path


@pytest.fixture
def user(tmp_path, tiny_folders) -> User:
    """With a model, two SAEs of it, and preference triples in TRL's explicit form of messages."""
    folder = tmp_path / "mine"
    shutil.copytree(tiny_folders["llama"], folder / "model")
    for name in ("input", "output"):
        shutil.copytree(tiny_folders[name], folder / "saes" / name)
    rows = []
    for n in range(60):
        said = " ".join(WORDS[(n + k) % len(WORDS)] for k in range(3 + n // len(WORDS)))
        answers = {"chosen": "w1 w2", "rejected": f"w{n % 5} w3"}
        row = {"prompt": [{"role": "user", "content": said}]}
        rows.append(row | {key: [{"role": "assistant", "content": text}] for key, text in answers.items()})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return User(folder)


def test_from_the_wheel_to_the_report_in_six_commands(user, wheel):
    user(sys.executable, "-m", "venv", "--without-pip", ".venv")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own,) = user.folder.glob(".venv/lib/python*/site-packages")
    (own / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    python = user.bin / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    user(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)

    program = user.bin / "dspa-bench"
    saes = ("--input-sae", "saes/input", "--output-sae", "saes/output")
    asked = ("--method", "dspa", "--method", "dpo", "--seeds", 1)
    out = user(program, "init", "first", "--base", "model", "--triples", "pairs.jsonl", *saes, *asked)
    assert "written: first/suite.yaml" in out
    suite = user.folder / "first" / "suite.yaml"
    text = suite.read_text()
    assert text.count("report: {baseline: base}") == 1
    suite.write_text(text.replace("report: {baseline: base}", "report: {baseline: dspa}"))  # the edit of one line
    assert "cells: 3, of which 3 to do" in user(program, "run", suite, "--dry-run")
    out = user(program, "run", suite)
    assert "[3/3] " in out
    assert out.endswith("report: runs/first/report/report.html\n")
    assert user(program, "report", "runs/first", "--baseline", "dpo", "--out", "again") == "again/report.md\n"
    assert user.commands <= MOST_COMMANDS

    page = (user.folder / "runs/first/report/report.html").read_text()
    assert all(f'data-variant="{name}"' in page for name in ("base", "dspa", "dpo"))
    assert "The baseline is dpo (the suite's is dspa)" in (user.folder / "again/report.md").read_text()
    code = "import baselines, dspa, harness, json, reports, sys, tasks; print(json.dumps([sys.path, [m.__file__ "
    found, files = json.loads(user.look(python, "-c", code + "for m in (baselines, dspa, harness, reports, tasks)]]))"))
    assert not any(Path(place).is_relative_to(HOME) for place in found if place not in borrowed)
    assert all(Path(file).is_relative_to(own) for file in files)
