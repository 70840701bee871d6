"""The suite file: what is compared with what, on which data, by which benchmarks and judge."""

import importlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from harness.benchmark import BENCHMARKS, Benchmark
from harness.experiment.schema import SuiteFile, VariantSection
from harness.experiment.source import Key, Source, describe, map_paths
from harness.judging import JUDGES, Judge
from harness.method import METHODS, AlignmentMethod
from harness.plugins import load_plugins
from harness.registry import Registry


@dataclass(frozen=True)
class Point:
    """One value of a sweep: the swept hyper-parameters and the method that has them."""

    values: Mapping[str, Any]
    method: AlignmentMethod


@dataclass(frozen=True)
class Variant:
    """A variant of the suite with its method built and its sweep spelt out."""

    name: str
    label: str
    method: AlignmentMethod
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A suite file whose names are all resolved; paths are absolute."""

    source: Source
    file: SuiteFile
    variants: tuple[Variant, ...]
    benchmarks: Mapping[str, Benchmark]
    judge: Judge | None
    second_judge: Judge | None = None

    @property
    def judges(self) -> dict[str, Judge]:
        """Key of the suite file -> the judge it describes."""
        found = {"judge": self.judge, "second_judge": self.second_judge}
        return {key: judge for key, judge in found.items() if judge is not None}

    @property
    def judged_twice(self) -> tuple[str, ...]:
        """The benchmarks whose answers the second judge judges too; none without one."""
        section = self.file.second_judge
        if section is None:
            return ()
        if section.benchmarks is not None:
            return section.benchmarks
        return tuple(name for name, benchmark in self.benchmarks.items() if benchmark.needs_judge)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def methods(self) -> Iterator[tuple[Key, AlignmentMethod]]:
        """Every method instance of the suite with the key of the file that it comes from."""
        for index, variant in enumerate(self.variants):
            yield ("variants", index), variant.method
            for point in variant.points:
                yield ("variants", index, "sweep"), point.method

    def to_yaml(self, folder: Path) -> str:
        """The suite as it was run (overrides applied); paths are relative to ``folder``, its future home."""
        data = _map_suite_paths(self.source.data, lambda path: _relative(Path(path), folder))
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite file; ``overrides`` are ``a.b=c`` and win over the file.

    Relative paths start at the suite's folder. Raises ValueError that names file:line of each key that is
    unknown, missing or wrong. Nothing is loaded yet: whether files exist and sizes fit is the business of
    `check_suite`.
    """
    source = Source(Path(path), overrides)
    file = _file(source)
    _import_plugins(source, file)
    folder = source.path.absolute().parent
    source.data = _map_suite_paths(source.data, lambda text: str(_absolute(text, folder)))
    file = _file(source)
    _check_names(source, file)
    context = _context(file)
    benchmarks: dict[str, Benchmark] = {}
    for index, entry in enumerate(file.benchmarks):
        key: Key = ("benchmarks", index)
        settings = entry.model_extra or {}
        benchmarks[entry.name] = _build(source, BENCHMARKS, entry.name, settings, context, key, (*key, "name"))
    judges: dict[str, Judge | None] = {}
    for name, section in (("judge", file.judge), ("second_judge", file.second_judge)):
        judges[name] = section and _build(
            source, JUDGES, section.kind, section.model_extra or {}, context, (name,), (name, "kind")
        )
    variants = tuple(_variant(source, file, i, v) for i, v in enumerate(file.variants))
    return Suite(source, file, variants, benchmarks, **judges)


def _file(source: Source) -> SuiteFile:
    try:
        return SuiteFile.model_validate(source.data)
    except ValidationError as problem:
        raise describe(problem, SuiteFile, source.error) from None


def _import_plugins(source: Source, file: SuiteFile) -> None:
    """Importing a plugin registers its methods, benchmarks and judges; harness itself knows none by name.

    Installed ones are found by their entry points; the suite may name more modules.
    """
    load_plugins()
    for index, plugin in enumerate(file.plugins):
        try:
            importlib.import_module(plugin)
        except ModuleNotFoundError as problem:
            if problem.name is None or not f"{plugin}.".startswith(f"{problem.name}."):
                raise  # the plugin is there and something that it imports is not: show where
            text = f"no Python module {plugin!r} to import; install it or put its folder on PYTHONPATH"
            raise source.error(("plugins", index), text) from None


def _check_names(source: Source, file: SuiteFile) -> None:
    for section, entries in (("benchmarks", file.benchmarks), ("variants", file.variants)):
        names = [entry.name for entry in entries]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise source.error((section, index), f"the name {name!r} is taken by another entry of {section}")
    for index, name in enumerate((file.second_judge and file.second_judge.benchmarks) or ()):
        if name not in [entry.name for entry in file.benchmarks]:
            text = f"no benchmark is called {name!r}; the suite has: {', '.join(b.name for b in file.benchmarks)}"
            raise source.error(("second_judge", "benchmarks", index), text)
    names = [v.name for v in file.variants]
    if file.report.baseline is not None and file.report.baseline not in names:
        text = f"no variant is called {file.report.baseline!r}; the suite has: {', '.join(names)}"
        raise source.error(("report", "baseline"), text)
    for section, budgets in (("budgets", file.budgets), ("flops_budgets", file.flops_budgets)):
        for index, budget in enumerate(budgets):
            if budget in budgets[:index]:
                raise source.error((section, index), f"budget {budget} is given twice")


def _build(
    source: Source,
    registry: Registry,
    name: str,
    params: Mapping[str, Any],
    context: Mapping[str, Any],
    place: Key,
    name_place: Key,
) -> Any:
    """The registered class ``name`` made from ``params``; complaints name the place of each parameter."""
    try:
        cls = cast(type[BaseModel], registry[name])
    except ValueError as problem:
        raise source.error(name_place, str(problem)) from None
    try:
        return cls.model_validate(dict(params), context=dict(context))
    except ValidationError as problem:
        raise describe(problem, cls, source.error, place) from None


def _variant(source: Source, file: SuiteFile, index: int, variant: VariantSection) -> Variant:
    key: Key = ("variants", index)

    def build(values: Mapping[str, Any], place: Key) -> Any:
        params = {**variant.params, **values}
        return _build(source, METHODS, variant.method, params, _context(file), place, (*key, "method"))

    method = build({}, (*key, "params"))
    for swept, values in variant.sweep.items():
        if swept not in type(method).model_fields:
            known = ", ".join(type(method).model_fields)
            raise source.error((*key, "sweep", swept), f"unknown key {swept!r}; known: {known}")
        if not values or len(set(values)) < len(values):
            raise source.error((*key, "sweep", swept), "give a list of different values")
    points = []
    for combination in itertools.product(*variant.sweep.values()) if variant.sweep else ():
        values = dict(zip(variant.sweep, combination, strict=True))
        points.append(Point(values, build(values, (*key, "sweep"))))
    return Variant(variant.name, variant.label or variant.name, method, tuple(points))


def _context(file: SuiteFile) -> dict[str, Any]:
    """What `SAERef` looks names of SAEs up in."""
    return {"saes": {name: ref.model_dump() for name, ref in file.saes.items()}}


def _map_suite_paths(data: dict[str, Any], change: Any) -> dict[str, Any]:
    """The suite's data with ``change`` applied to all its paths, those of its plugins' classes included."""
    data = map_paths(SuiteFile, data, change)
    data["benchmarks"] = [map_paths(_class(BENCHMARKS, b["name"]), b, change) for b in data["benchmarks"]]
    data["variants"] = [
        {**v, "params": map_paths(_class(METHODS, v["method"]), v["params"], change)} if v.get("params") else v
        for v in data["variants"]
    ]
    for key in ("judge", "second_judge"):
        if data.get(key):
            data[key] = map_paths(_class(JUDGES, data[key]["kind"]), data[key], change)
    return data


def _class(registry: Registry, name: str) -> type | None:
    if name not in registry:
        return None  # the complaint about it, with the known names, comes from `_build`
    return registry[name]


def _absolute(text: str, folder: Path) -> Path:
    return Path(os.path.abspath(folder / Path(text).expanduser()))


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
