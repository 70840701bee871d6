"""What can be written in a suite, from the classes that read it: every parameter, and a JSON schema for editors."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.benchmark import BENCHMARKS
from harness.data.refs import ModelRef, SAERef
from harness.engine.engine import ENGINES
from harness.experiment.sections import SuiteFile
from harness.judging import JUDGES
from harness.method import METHODS
from harness.plugins import Registry, alike

REGISTRIES: tuple[Registry, ...] = (METHODS, BENCHMARKS, JUDGES, ENGINES)
_REFS = {ModelRef: "model", SAERef: "SAE"}
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "null", Path: "path"}
_WORDS |= {ModelRef: "model: {path} or {id, revision}", SAERef: "SAE: a name of `saes:`, {path} or {release, id}"}


@dataclass(frozen=True)
class Parameter:
    """One key of a suite: ``name`` is dotted inside a section; ``default`` is None where ``required``.

    ``bounds`` are such as ``> 0``; ``about`` is the description of what it is, with its unit, or "".
    """

    name: str
    type: str
    bounds: str
    required: bool
    default: Any
    about: str


@dataclass(frozen=True)
class Described:
    """A method, benchmark, judge or engine (``kind``) with all that a suite can say of it; ``source`` is its module."""

    name: str
    kind: str
    summary: str
    text: str
    source: str
    parameters: tuple[Parameter, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def described(registry: Registry) -> list[Described]:
    """Everything in ``registry``, by name."""
    return [_described(registry, name) for name in registry]


def describe_named(name: str) -> list[Described]:
    """The methods, benchmarks, judges and engines of this name; ValueError, with those there are, for no such name."""
    found = [_described(registry, name) for registry in REGISTRIES if name in registry]
    if not found:
        every = [one for registry in REGISTRIES for one in registry]
        known = "; ".join(f"{registry.noun}s: {', '.join(registry)}" for registry in REGISTRIES)
        raise ValueError(f"nothing is called {name!r}; {known}{alike(name, every)}")
    return found


def _described(registry: Registry, name: str) -> Described:
    cls = registry[name]
    text = inspect.cleandoc(cls.__doc__ or "")
    return Described(name, registry.noun, _summary(cls, name), text, cls.__module__, tuple(parameters(cls)))


def _summary(cls: type, name: str) -> str:
    """One line: what the module says behind the name, where it begins with it, else the class's first sentence."""
    module = inspect.cleandoc(inspect.getmodule(cls).__doc__ or "").split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]
    names, colon, rest = module.partition(": ")
    words = names.lower().replace("_", "").split()
    if colon and name.replace("_", "") in words and len(words) <= 3:  # also `a and b: ...`
        return rest[:1].upper() + rest[1:]
    own = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", re.sub(r"^arXiv [\d.]+\d[.:]? ", "", own))[0]


def parameters(cls: type[BaseModel], prefix: str = "") -> Iterator[Parameter]:
    """The settings of ``cls`` in the order of the class, those of a section under its name."""
    required = cls.model_json_schema().get("required", ())  # without those that a validator of the class finds
    for name, info in cls.model_fields.items():
        section = next((one for one in _members(info.annotation) if _is_section(one)), None)
        if section is not None and not info.is_required() and NoneType not in _members(info.annotation):
            yield from parameters(section, f"{prefix}{name}.")
        else:
            yield _parameter(f"{prefix}{name}", info, name in required, _about(cls, name))


def _about(cls: type[BaseModel], name: str) -> str:
    """The description of a field, by the nearest class that has one: a subclass may only change the default."""
    fields = (one.model_fields.get(name) for one in cls.__mro__ if issubclass(one, BaseModel) and one is not BaseModel)
    return next((field.description for field in fields if field is not None and field.description), "")


def _parameter(name: str, info: FieldInfo, required: bool, description: str) -> Parameter:
    bounds = [_bound(one) for one in info.metadata]
    about = [description] if description else []
    for part in get_args(info.annotation):  # of `Annotated[int, Field(ge=1, description=...)] | None`
        for field in getattr(part, "__metadata__", ()):
            if isinstance(field, FieldInfo):
                bounds += [_bound(one) for one in field.metadata]
                about += [field.description] if field.description and not about else []
            else:
                bounds.append(_bound(field))
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json")
    elif isinstance(default, Path):
        default = str(default)
    elif isinstance(default, tuple):
        default = list(default)
    text = "; ".join(dict.fromkeys(filter(None, bounds)))
    return Parameter(name, _type(info.annotation), text, required, default, "".join(about))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in _REFS


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in _members(part)]
    return [annotation]


def _type(annotation: Any) -> str:
    """Words for an annotation: ``whole number or null``, ``lora | full``, ``list of text``."""
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(dict.fromkeys(_type(one) for one in members))
    kind = members[0]
    arguments = get_args(kind)
    origin = get_origin(kind)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (tuple, list, set, frozenset):
        return f"list of {_type(arguments[0])}" if arguments else "list"
    if origin is dict or (origin is not None and len(arguments) == 2):
        return f"{{{_type(arguments[0])}: {_type(arguments[1])}}}"
    if _is_section(kind):
        return f"{{{', '.join(kind.model_fields)}}}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _bound(metadata: Any) -> str:
    signs = {annotated_types.Gt: ("gt", "> "), annotated_types.Ge: ("ge", ">= "), annotated_types.Lt: ("lt", "< ")}
    signs[annotated_types.Le] = ("le", "<= ")
    if type(metadata) in signs:
        key, sign = signs[type(metadata)]
        return f"{sign}{getattr(metadata, key):g}"
    if isinstance(metadata, annotated_types.MinLen):
        return f"at least {metadata.min_length} long" if metadata.min_length > 1 else "not empty"
    return ""


def suite_schema() -> dict[str, Any]:
    """The JSON schema of suite files: of every section, and of the settings of all that a section can name.

    What only a run can know (files, sizes, names of SAEs) is not in it.
    """
    schema = SuiteFile.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]

    def settings(registry: Registry, name: str) -> dict[str, Any]:
        found = registry[name].model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(found.pop("$defs", {}))
        return found

    variant = definitions["VariantSection"]
    variant["properties"]["method"]["enum"] = list(METHODS)
    variant["allOf"] = []
    for name in METHODS:
        definitions[f"method {name}"] = settings(METHODS, name)
        there = {"$ref": f"#/$defs/method {name}"}
        variant["allOf"].append(_if("method", name, {"properties": {"params": there}}))
    for section, key, registry in (
        ("BenchmarkSection", "name", BENCHMARKS),
        ("JudgeSection", "kind", JUDGES),
        ("SecondJudgeSection", "kind", JUDGES),
        ("EngineSection", "kind", ENGINES),
    ):
        entry = definitions[section]
        entry["properties"][key]["enum"] = list(registry)
        entry["allOf"] = []
        for name in registry:
            own = settings(registry, name)
            own["properties"] = {**entry["properties"], **own.get("properties", {})}
            entry["allOf"].append(_if(key, name, own))
    definitions["EngineSection"] = {"anyOf": [{"enum": list(ENGINES)}, definitions["EngineSection"]]}
    # A name of the table `saes:` stands for an SAE everywhere.
    definitions["SAERef"] = {"anyOf": [{"type": "string"}, definitions["SAERef"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "dspa-bench suite"}


def _if(key: str, value: str, then: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}
