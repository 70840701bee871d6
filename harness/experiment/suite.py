"""The suite file: what is compared with what, on which data, by which benchmarks and judge."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from harness.benchmark import BENCHMARKS, BenchmarkConfig
from harness.engine.engine import ENGINES, EngineConfig
from harness.experiment.sections import MOST_POINTS, SuiteFile, VariantSection
from harness.experiment.shipped import Shipped, find_shipped
from harness.experiment.source import Key, Source, describe
from harness.experiment.space import Choices, Space, SpaceError, Values
from harness.judging import JUDGES, Judge
from harness.method import METHODS, MethodConfig
from harness.plugins import Registry, import_beside, load_plugins
from harness.run_folder.plan import PlannedCell


@dataclass(frozen=True)
class Variant:
    """A variant of the suite with its method built and its sweep spelt out: (swept values, method) of each point.

    ``space`` is what tuning may try in ``trials`` trials; None for a variant that is not tuned.
    """

    section: VariantSection
    method: MethodConfig
    points: tuple[tuple[dict[str, Any], MethodConfig], ...]
    space: Space | None = None
    trials: int = 0

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def label(self) -> str:
        return self.section.label or self.name


@dataclass(frozen=True)
class Suite:
    """A suite file whose names are all resolved; paths are absolute. ``engine``: None for transformers.
    ``shipped``: the suite of ours that it is."""

    source: Source
    file: SuiteFile
    variants: tuple[Variant, ...]
    benchmarks: Mapping[str, BenchmarkConfig]
    judge: Judge | None
    second_judge: Judge | None
    engine: EngineConfig | None = None
    shipped: Shipped | None = None

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
    def methods(self) -> Iterator[tuple[Key, MethodConfig]]:
        """Every method instance of the suite with the key of the file that it comes from."""
        for index, variant in enumerate(self.variants):
            yield ("variants", index), variant.method
            for _, method in variant.points:
                yield ("variants", index, "sweep"), method
            for name, method in variant.space.samples if variant.space is not None else ():
                yield ("variants", index, "tune", name), method

    def params(self, variant: Variant, method: MethodConfig, context: dict[str, Any]) -> dict[str, Any]:
        """All hyper-parameters of ``method``, defaults included; an SAE that the suite calls by name keeps its name.

        ``context`` says what stands for a path (see `harness.data.refs.InputPath`).
        """
        given = variant.section.params
        resolved = method.model_dump(mode="json", context=context)
        return {key: _named(given.get(key), value, self.file.saes) for key, value in resolved.items()}

    def variant_of(self, cell: PlannedCell) -> Variant:
        """The variant of ``cell``."""
        return next(variant for variant in self.variants if variant.name == cell.variant)

    def tuned(self, cell: PlannedCell) -> bool:
        """Whether ``cell`` is tuned before its fit; points of a sweep are not."""
        return cell.sweep is None and self.variant_of(cell).space is not None

    def method_of(self, cell: PlannedCell, folder: Path, values: Values | None = None) -> MethodConfig:
        """The method of ``cell``, a cell of the run in ``folder``, with some ``values`` changed."""
        return METHODS[cell.method].model_validate(cell.params | (values or {}), context=_context(self.file, folder))

    def to_yaml(self, folder: Path) -> str:
        """The suite as it was run (overrides applied); paths are relative to ``folder``, its future home."""
        resolved = dumped(self.file, folder)
        resolved["benchmarks"] = [{"name": one.name, **dumped(one, folder)} for one in self.benchmarks.values()]
        for section, variant in zip(resolved["variants"], self.variants, strict=True):
            section["params"] = dumped(variant.method, folder)
            section["tune"] = moved_values(variant, folder)
        for key, judge in self.judges.items():
            resolved[key] = {**resolved[key], **dumped(judge, folder)}
        return yaml.safe_dump(as_given(self.source.data, resolved), sort_keys=False, allow_unicode=True)


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite file, or the suite of that name that comes with a package; ``overrides`` are ``a.b=c`` and win.

    Relative paths start at the suite's folder; what a suite of ours says is to be fetched or made first is looked for
    in the working folder's ``build``. Plugins may lie beside the suite. Raises ValueError that names file:line of each
    key that is unknown, missing or wrong. Nothing is loaded yet: whether files exist and sizes fit is the business of
    `check_suite`.
    """
    found = find_shipped(path)
    source = Source(Path(path) if found is None else found.path, overrides)
    if found is not None:
        source.data = found.placed(source.data)
    try:
        file = SuiteFile.model_validate(source.data, context={"folder": source.path.parent})
    except ValidationError as problem:
        raise describe(problem, SuiteFile, source.error) from None
    _import_plugins(source, file)
    _check_names(source, file)
    context = _context(file, source.path.parent)
    benchmarks: dict[str, BenchmarkConfig] = {}
    for index, entry in enumerate(file.benchmarks):
        key: Key = ("benchmarks", index)
        name, place = entry.name, (*key, "name")
        benchmarks[entry.as_ or name] = _build(source, BENCHMARKS, name, entry.model_extra, context, key, place)
    judges: list[Judge | None] = [
        section and _build(source, JUDGES, section.kind, section.model_extra, context, (key,), (key, "kind"))
        for key, section in (("judge", file.judge), ("second_judge", file.second_judge))
    ]
    variants = tuple(_variant(source, file, v, i, context) for i, v in enumerate(file.variants))
    section, key = file.execution.engine, ("execution", "engine")
    engine = section and _build(source, ENGINES, section.kind, section.model_extra, context, key, (*key, "kind"))
    return Suite(source, file, variants, benchmarks, judges[0], judges[1], engine, found)


def _import_plugins(source: Source, file: SuiteFile) -> None:
    """Importing a plugin registers its methods, benchmarks and judges; harness itself knows none by name.

    Installed ones are found by their entry points; the suite may name more modules.
    """
    load_plugins()
    for index, plugin in enumerate(file.plugins):
        try:
            import_beside(plugin, source.path.parent)
        except ValueError as problem:
            raise source.error(("plugins", index), str(problem)) from problem


def _check_names(source: Source, file: SuiteFile) -> None:
    names = {"benchmarks": [b.as_ or b.name for b in file.benchmarks], "variants": [v.name for v in file.variants]}
    for section, taken in names.items():
        for index, name in enumerate(taken):
            if name in taken[:index]:
                more = "; give one of them another, `as: NAME`" if section == "benchmarks" else ""
                raise source.error((section, index), f"the name {name!r} is taken by another entry of {section}{more}")
    for index, name in enumerate((file.second_judge and file.second_judge.benchmarks) or ()):
        if name not in names["benchmarks"]:
            text = f"no benchmark is called {name!r}; the suite has: {', '.join(names['benchmarks'])}"
            raise source.error(("second_judge", "benchmarks", index), text)
    if file.report.baseline is not None and file.report.baseline not in names["variants"]:
        text = f"no variant is called {file.report.baseline!r}; the suite has: {', '.join(names['variants'])}"
        raise source.error(("report", "baseline"), text)
    for section, budgets in (("budgets", file.budgets), ("flops_budgets", file.flops_budgets)):
        for index, budget in enumerate(budgets):
            if budget in budgets[:index]:
                raise source.error((section, index), f"budget {budget} is given twice")


def _build(
    source: Source,
    registry: Registry,
    name: str,
    params: dict[str, Any] | None,
    context: dict[str, Any],
    place: Key,
    name_place: Key,
) -> Any:
    """The registered class ``name`` made from ``params``; complaints name the place of each parameter."""
    try:
        cls: type[BaseModel] = registry[name]
    except ValueError as problem:
        raise source.error(name_place, str(problem)) from None
    for field, info in cls.model_fields.items():
        if not info.metadata and Path in (info.annotation, *get_args(info.annotation)):
            text = f"{registry.noun} {name!r} takes a plain Path as {field!r}; declare it as harness.data.refs."
            raise source.error(name_place, f"{text}InputPath, so that it starts at the suite's folder")
    try:
        return cls.model_validate(params, context=context)
    except ValidationError as problem:
        raise describe(problem, cls, source.error, place) from None


def _variant(source: Source, file: SuiteFile, variant: VariantSection, index: int, context: dict[str, Any]) -> Variant:
    key: Key = ("variants", index)

    def build(values: dict[str, Any], place: str) -> Any:
        params = {**variant.params, **values}
        return _build(source, METHODS, variant.method, params, context, (*key, place), (*key, "method"))

    method = build({}, "params")
    for swept, values in variant.sweep.items():
        if swept not in type(method).model_fields:
            known = ", ".join(type(method).model_fields)
            raise source.error((*key, "sweep", swept), f"unknown key {swept!r}; known: {known}")
        if not values or len(set(values)) < len(values):
            raise source.error((*key, "sweep", swept), "give a list of different values")
    if math.prod(map(len, variant.sweep.values())) > MOST_POINTS:
        raise source.error((*key, "sweep"), f"has more than {MOST_POINTS:,} points; give fewer values")
    combinations = itertools.product(*variant.sweep.values()) if variant.sweep else ()
    points = [dict(zip(variant.sweep, combination, strict=True)) for combination in combinations]
    if variant.preferences != "given" and not method.uses_triples:
        raise source.error((*key, "preferences"), f"method {variant.method!r} uses no triples, so this changes nothing")
    found = Variant(variant, method, tuple((values, build(values, "sweep")) for values in points))
    return _tuned(source, file, found, key, lambda values, _: build(values, "tune"))


def _tuned(
    source: Source, file: SuiteFile, variant: Variant, key: Key, build: Callable[[Values, str], MethodConfig]
) -> Variant:
    """``variant`` with the space and number of its trials, where it has ``tune``."""
    section = variant.section
    if not section.tune:
        if section.trials is not None:
            raise source.error((*key, "trials"), "trials of a variant without 'tune'; add it, or leave this out")
        return variant
    if not variant.method.uses_triples:
        raise source.error(
            (*key, "tune"), f"method {section.method!r} uses no triples, so nothing can be tuned on them"
        )
    try:
        space = Space.of(section.tune, section.params, build)
    except SpaceError as problem:
        raise source.error((*key, "tune", problem.key), problem.text) from None
    trials = section.trials or file.tune.trials
    if space.points is None and file.tune.search == "grid":
        raise source.error((*key, "tune"), "a grid has no ranges of floats; give lists of values, or search: tpe")
    if space.points is not None and space.points > trials and file.tune.search == "grid":
        text = f"the grid has {space.points} points, the variant's own included, and there are {trials} trials"
        raise source.error((*key, "tune"), f"{text}; give trials: {space.points}, or fewer values")
    return replace(variant, space=space, trials=min(trials, space.points or trials))


def moved_values(variant: Variant, folder: Path) -> dict[str, Any]:
    """The ``tune`` of a variant with paths in it relative to ``folder``."""
    found, space = dict(variant.section.tune), variant.space
    if space is not None:
        for name, dimension in space.dimensions.items():
            if isinstance(dimension, Choices):
                methods = [method for key, method in space.samples if key == name]
                found[name] = as_given(list(dimension), [dumped(method, folder)[name] for method in methods])
    return found


def _context(file: SuiteFile, folder: Path) -> dict[str, Any]:
    """What `InputPath` starts at and `SAERef` looks names of SAEs up in."""
    return {"folder": folder, "saes": {name: ref.model_dump() for name, ref in file.saes.items()}}


def _named(given: Any, resolved: Any, saes: Mapping[str, Any]) -> Any:
    """``given`` where it is the name of an SAE, or a list that holds some, and ``resolved`` elsewhere."""
    if isinstance(given, str) and given in saes and isinstance(resolved, dict):
        return given
    if isinstance(given, list) and isinstance(resolved, list) and len(given) == len(resolved):
        return [_named(one, other, saes) for one, other in zip(given, resolved, strict=True)]
    return resolved


def dumped(thing: Any, folder: Path) -> dict[str, Any]:
    """The settings of ``thing`` as JSON, paths relative to ``folder``; not what is computed, which may take long."""
    return thing.model_dump(mode="json", include=set(type(thing).model_fields), context={"folder": folder})


def as_given(given: Any, resolved: Any) -> Any:
    """``given`` with the texts in it as they are in ``resolved``, where paths are relative to another folder."""
    if isinstance(given, dict) and isinstance(resolved, dict):
        return {key: as_given(value, resolved.get(key)) for key, value in given.items()}
    if isinstance(given, list) and isinstance(resolved, list) and len(given) == len(resolved):
        return [as_given(one, other) for one, other in zip(given, resolved, strict=True)]
    return resolved if isinstance(given, str) and isinstance(resolved, str) else given
