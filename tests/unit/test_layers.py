"""Who may import whom. Every import counts: at the top, inside a function, and for type checking only."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("harness", "dspa", "baselines", "tasks", "reports")
ALLOWED = {
    "harness": {"harness"},
    "dspa": {"dspa", "harness"},
    "tasks": {"tasks", "harness"},
    "reports": {"reports", "harness"},
    "baselines": {"baselines", "harness", "dspa"},
}
SHARED_SAE_CODE = ("dspa.saes", "dspa.saes.sae", "dspa.saes.encoder", "dspa.map.sparse", "dspa.density", "dspa.density")
SHARED_SAE_CODE += ("dspa.steering", "dspa.audit.snippets")
"""What methods other than DSPA may use of it: reading SAEs, measuring densities, (steering) choosing and editing
latents, and (snippets) showing where latents fire."""
LIGHT = ("harness.run_folder", "reports")
"""Packages that read a finished run anywhere, so they name none of the libraries that a run needs."""
HEAVY = ("torch", "transformers", "pandas")


def modules() -> dict[str, Path]:
    """Dotted name -> file, of all production code."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in dotted.items()}


MODULES = modules()


def imported(name: str) -> set[str]:
    """Modules that the file of ``name`` imports: ours as the file that is meant, others by their dotted name."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import module` means the module's file, `from package import name` the package's own.
            submodules = {alias.name: f"{source}.{alias.name}" for alias in node.names}
            found |= {full if full in MODULES else source for full in submodules.values()}
    return found - {name}


IMPORTS = {name: imported(name) for name in MODULES}


def within(module: str, *packages: str) -> bool:
    """Whether ``module`` is one of ``packages`` or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def arrows(importers: str) -> Iterator[tuple[str, str]]:
    """(importing module, imported module) of every import in a package."""
    return ((name, target) for name in MODULES if within(name, importers) for target in sorted(IMPORTS[name]))


def said(wrong: list[tuple[str, str]]) -> str:
    return "".join(f"\n  {name} -> {target}" for name, target in wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package):
    wrong = [(a, b) for a, b in arrows(package) if within(b, *PACKAGES) and not within(b, *ALLOWED[package])]
    assert not wrong, f"{package} may import {', '.join(sorted(ALLOWED[package]))}, not:{said(wrong)}"


def test_the_baselines_use_of_dspa_only_its_shared_sae_code():
    wrong = [(a, b) for a, b in arrows("baselines") if within(b, "dspa") and not within(b, *SHARED_SAE_CODE)]
    assert not wrong, f"baselines may use {', '.join(SHARED_SAE_CODE)}, not:{said(wrong)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_of_a_package_import_each_other_in_a_circle(package):
    circles = [circle for circle in strongly_connected(package) if len(circle) > 1]
    lines = [
        f"\n  a circle of {len(circle)} files:"
        + said([(a, b) for a in sorted(circle) for b in sorted(IMPORTS[a] & circle)]).replace("\n", "\n  ")
        for circle in circles
    ]
    assert not circles, "".join(lines)


def strongly_connected(package: str) -> list[set[str]]:
    """Largest sets of a package's files in which every file reaches every other."""
    files = {name for name in MODULES if within(name, package)}
    reached = {name: reachable(name, files) for name in files}
    circles: dict[str, set[str]] = {}
    for name in sorted(files):
        if name not in circles:
            circle = {name} | {other for other in reached[name] if name in reached[other]}
            circles |= dict.fromkeys(circle, circle)
    return list({id(circle): circle for circle in circles.values()}.values())


def reachable(start: str, files: set[str]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = (IMPORTS[waiting.pop()] & files) - seen
        seen |= new
        waiting += new
    return seen


def test_the_run_folder_and_the_reports_name_no_heavy_library():
    wrong = [(a, b) for package in LIGHT for a, b in arrows(package) if within(b, *HEAVY)]
    assert not wrong, f"only plain libraries are allowed here, not:{said(wrong)}"


def test_modules_that_must_load_at_once_load_no_heavy_library():
    commands = [entry.module for entry in entry_points(group="dspa_bench.commands")]
    light = [
        "harness.cli.app",
        "harness.run_folder.plan",
        "harness.markdown",
        "harness.quiet",
        "harness.provenance",
        *commands,
    ]
    light += [name for name in MODULES if within(name, *LIGHT)]
    assert {"dspa.commands", "tasks.commands", "reports.commands"} <= set(commands)
    code = (
        "import importlib, sys\n"
        f"for module in {light}:\n"
        "    importlib.import_module(module)\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not heavy, f'{module} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_every_entry_point_of_this_project_names_something_that_is_there():
    groups = ("dspa_bench.plugins", "dspa_bench.commands", "dspa_bench.reports", "dspa_bench.truths")
    for group in groups:
        mine = [entry for entry in entry_points(group=group) if within(entry.module, *PACKAGES)]
        assert mine, f"nothing is declared under {group}"
        assert [entry.module for entry in mine if entry.module not in MODULES] == []


def test_every_module_with_shapes_in_its_annotations_is_checked_while_tests_run():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    (listed,) = (o for o in options["addopts"].split() if o.startswith("--jaxtyping-packages="))
    *checked, _ = listed.partition("=")[2].split(",")
    assert [name for name in MODULES if "jaxtyping" in IMPORTS[name] and not within(name, *checked)] == []
    assert [name for name in checked if not any(within(module, name) for module in MODULES)] == []
