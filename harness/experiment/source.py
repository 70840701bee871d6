"""A YAML file that remembers where each key stands, so that every complaint about it can say file:line."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError

from harness.files import read_text
from harness.plugins import alike

Key = tuple[str | int, ...]


LARGEST = 100_000
"""Values that a file may have, each alias counted as all that it stands for: some lines of aliases are billions."""
DEEPEST = 100
"""Levels of lists and keys; a file whose aliases stand for themselves has no deepest."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2: 1e-3 is a float, as the writer of a learning rate expects (YAML 1.1 reads a string), and JSON is YAML,
    which writes a character beyond U+FFFF as two halves."""

    def construct_scalar(self, node: Any) -> Any:
        """As PyYAML does, with two halves of a character as one."""
        value = super().construct_scalar(node)
        if not isinstance(value, str) or value.isascii():
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As PyYAML does, which ends in the error of int(), date() or whatever cannot read a value."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, TypeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            shown = repr(str(node.value)[:30]) if isinstance(node, yaml.ScalarNode) else "this"
            raise ConstructorError(None, None, f"{shown} cannot be read as {kind}", node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse_scalar(text: str) -> Any:
    """The value of ``text`` as YAML: ``0.5`` is a float, ``[1, 2]`` a list, ``yes`` and ``true`` booleans."""
    try:
        return _read(text)[1]
    except (yaml.YAMLError, RecursionError) as problem:
        shown = text if len(text) < 100 else f"{text[:100]}..."
        raise ValueError(f"cannot read {shown!r} as a YAML value: {_yaml_problem(problem)}") from None


def _read(text: str) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML document and its value; YAMLError or RecursionError for what is none or has no end."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _check_size(node)
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def read_yaml(path: str | Path, what: str) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML file and its value; ``what`` names the file where it is missing.

    Raises ValueError (file:line), which repeats nothing of the content, for what is no YAML, too large or too deep.
    """
    text = read_text(path, what)
    try:
        return _read(text)
    except (yaml.YAMLError, RecursionError) as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise ValueError(f"{where}: not valid YAML: {_yaml_problem(problem)}") from None


def _check_size(node: yaml.Node) -> None:
    """Raise YAMLError for a tree that is too large or too deep, its aliases followed."""
    level, count = [node], 1
    for _ in range(DEEPEST):
        below: list[yaml.Node] = []
        for inner in (inner for outer in level for inner in _inner(outer)):
            below.append(inner)
            count += 1
            if count > LARGEST:  # one level may be billions
                raise ConstructorError(None, None, f"more than {LARGEST:,} values, with what its aliases stand for")
        level = below
        if not level:
            return
    raise ConstructorError(None, None, f"more than {DEEPEST} levels; does an alias stand for itself?", node.start_mark)


def _inner(node: yaml.Node) -> Iterator[yaml.Node]:
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from item if isinstance(item, tuple) else (item,)


class Source:
    """The parsed data of one YAML file (``data``) and the place of every key in it."""

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        """Read ``path`` and apply ``overrides`` (``a.b=c``); raises ValueError for a bad file or override."""
        self.path = path
        self._places: dict[Key, str] = {(): str(path)}
        node, data = read_yaml(path, "suite")
        self._locate(node, ())
        if not isinstance(data, dict):
            raise ValueError(f"{path}: expected a mapping of keys to values, found {type(data).__name__}")
        self.data: dict[str, Any] = data
        for override in overrides:
            names, value = split_override(override)
            key = set_value(self.data, names, value, f"--set {override}")
            self._places = {k: place for k, place in self._places.items() if k[: len(key)] != key}
            self._places[key] = f"--set {override}"

    def _locate(self, node: yaml.Node | None, key: Key) -> None:
        """Note the line of every key; a key given twice is refused (PyYAML would silently keep the last)."""
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                child = (*key, str(key_node.value))
                place = f"{self.path}:{key_node.start_mark.line + 1}"
                if child in self._places:
                    raise ValueError(f"{place}: key {dotted(child)!r} is given twice (first at {self._places[child]})")
                self._places[child] = place
                self._locate(value_node, child)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._places[(*key, index)] = f"{self.path}:{item.start_mark.line + 1}"
                self._locate(item, (*key, index))

    def error(self, key: Key, problem: str) -> ValueError:
        """A ValueError that names the key and its place: file:line, or that of the nearest enclosing key there is."""
        there = key
        while there not in self._places:
            there = there[:-1]
        return ValueError(": ".join([self._places[there], *([dotted(key)] if key else []), problem]))


def split_override(override: str) -> tuple[list[str], Any]:
    """``a.b=c`` as (["a", "b"], parsed c)."""
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ValueError(f"cannot read override {override!r}; write a.b=c, e.g. variants.dspa.params.alpha=0.5")
    return name.split("."), parse_scalar(text)


def set_value(data: dict[str, Any], keys: Sequence[str], value: Any, where: str) -> Key:
    """Set the value at ``keys``, where a list's entry has its number, ``name`` or ``as``; returns the full key."""
    here: Any = data
    path: list[str | int] = []
    for step, name in enumerate(keys):
        key: Any = name
        if isinstance(here, list):
            key = _entry(here, name, f"{where}: {'.'.join(keys[:step])!r}")
        elif not isinstance(here, dict):
            raise ValueError(f"{where}: {'.'.join(keys[:step])!r} is a single value and has no key {name!r}")
        path.append(key)
        if step == len(keys) - 1:
            here[key] = value
        else:
            here = here.setdefault(key, {}) if isinstance(here, dict) else here[key]
    return tuple(path)


def _entry(entries: list[Any], name: str, where: str) -> int:
    names = [entry.get("as") or entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(entries):
        return int(name)
    known = ", ".join(str(n) for n in names if n) or f"0 to {len(entries) - 1}"
    raise ValueError(f"{where} has no entry {name!r}; it has: {known}{alike(name, filter(None, names))}")


def dotted(key: Iterable[str | int]) -> str:
    """``("variants", 0, "name")`` as ``variants[0].name``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def describe(
    problem: ValidationError, cls: type[BaseModel], at: Callable[[Key, str], ValueError], prefix: Key = ()
) -> ValueError:
    """Pydantic's complaints about a ``cls`` as one ValueError; ``at(key, text)`` words a single one."""
    lines = []
    for error in problem.errors(include_url=False):
        key, text = tuple(error["loc"]), error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            known = _known_keys(cls, key[:-1])
            text = f"unknown key {key[-1]!r}; known: {', '.join(known)}{alike(str(key[-1]), known)}"
        elif error["type"] == "missing":
            key, text = key[:-1], f"missing key {key[-1]!r}"
        elif error["type"] in _KINDS:
            text = f"give {_KINDS[error['type']]}, got {_shown(error['input'])}"
        elif error["type"] == "too_short" and not error["input"]:
            text = "is empty; give at least one entry"
        elif isinstance(error["input"], str | int | float | bool) and error["type"] != "value_error":
            text = f"{text} (got {error['input']!r})"
        lines.append(str(at((*prefix, *key), text)))
    return ValueError("\n".join(lines))


_KINDS = {f"{kind}_type": "a list, such as [1, 2]" for kind in ("tuple", "list", "set", "frozenset")}
_KINDS |= {"dict_type": "keys with values, such as {a: 1}", "model_type": "keys with values, such as {a: 1}"}
_KINDS |= {"model_attributes_type": "keys with values, such as {a: 1}", "string_type": "a text"}
_KINDS |= dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number")
_KINDS |= dict.fromkeys(("float_type", "float_parsing"), "a number")
_KINDS |= dict.fromkeys(("bool_type", "bool_parsing"), "true or false")
"""Pydantic's names of what is of another kind -> what a writer of YAML calls it."""


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float | bool):
        return repr(value)
    return "nothing" if value is None else "keys" if isinstance(value, dict) else "a list"


def _known_keys(cls: Any, key: Key) -> list[str]:
    """The keys allowed at ``key`` inside ``cls``, found by walking the annotations."""
    for part in key:
        inner = [kind for kind in _members(cls) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if isinstance(part, int) or not inner:
            continue
        cls = next((m.model_fields[part].annotation for m in inner if part in m.model_fields), None)
    known = [m for m in _members(cls) if isinstance(m, type) and issubclass(m, BaseModel)]
    return [name for m in known for name in m.model_fields]


def _members(annotation: Any) -> list[Any]:
    """The types an annotation is built from, unwrapped: ``tuple[A | None, ...]`` gives A and None."""
    args = get_args(annotation)
    return [m for arg in args for m in _members(arg)] if args else [annotation]


def _yaml_problem(problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    return getattr(problem, "problem", None) or str(problem)
