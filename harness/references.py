"""Names of models and SAEs inside an artifact's JSON: kept relative to its folder, so that both may move together."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.files import write_json

Reference = dict[str, Any]
"""A ModelRef or SAERef as JSON: it has ``path``, and ``id`` where it has none."""


def is_reference(value: Any) -> bool:
    """Whether ``value`` names something that is elsewhere."""
    return isinstance(value, dict) and {"path", "id"} <= value.keys()


def references(value: Any, name: str = "") -> Iterator[tuple[str, Reference]]:
    """(name, reference) of each local folder or file that the JSON ``value`` names; one in a list is NAME.0 and on."""
    if is_reference(value) and value["path"] is not None:
        yield name, value
    elif isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from references(item, f"{name}.{key}" if name else str(key))


def with_paths(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every reference's path changed."""
    if is_reference(value) and value["path"] is not None:
        return {**value, "path": change(value["path"])}
    if isinstance(value, Mapping):
        return {key: with_paths(item, change) for key, item in value.items()}
    return [with_paths(item, change) for item in value] if isinstance(value, list) else value


def relative_to(folder: Path) -> Callable[[str], str]:
    """From a path of this process to one that starts at ``folder``."""
    home = folder.resolve()
    return lambda path: Path(os.path.relpath(Path(path).resolve(), home)).as_posix()


def starting_at(folder: Path) -> Callable[[str], str]:
    """The way back; a path that is absolute, as older artifacts have them, stays as it is."""
    home = folder.resolve()
    return lambda path: os.path.normpath(home / path)


def rebase(artifact: Path, was: Path) -> None:
    """Correct the paths in the aligned.json of ``artifact``, a copy of ``was`` in another place."""
    file = artifact / "aligned.json"
    if file.is_file():
        there, here = starting_at(was), relative_to(artifact)
        write_json(file, with_paths(json.loads(file.read_text(encoding="utf-8")), lambda path: here(there(path))))
