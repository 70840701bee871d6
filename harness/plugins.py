"""A name -> class table: a duplicate name raises, an unknown one lists what is known."""

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Named extension points of one kind (``noun`` is used in error messages)."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator: make the class known as ``name``; raises ValueError when the name is taken."""

        def decorate(cls: type) -> type:
            if name in self._entries:
                raise ValueError(f"{self.noun} {name!r} is already registered by {self._entries[name].__qualname__}")
            cls.name = name  # type: ignore[attr-defined]
            self._entries[name] = cls
            return cls

        return decorate

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._entries:
            raise ValueError(f"unknown {self.noun} {name!r}; known: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


PLUGINS, COMMANDS = "dspa_bench.plugins", "dspa_bench.commands"
REPORTS, TRUTHS = "dspa_bench.reports", "dspa_bench.truths"


def declared(group: str) -> list[EntryPoint]:
    """The entry points of ``group``, by name; ValueError when there is none, which means nothing is installed."""
    found = sorted(entry_points(group=group), key=lambda entry: entry.name)
    if not found:
        raise ValueError(f"no installed package has entry points {group!r}; in a checkout run: pip install -e .")
    return found


def installed(module: str) -> bool:
    """Whether a module of this dotted name can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every plugin module once, which fills the registries; returns their names.

    The harness's own judges are registered with them.
    """
    modules = sorted({entry.value for entry in declared(PLUGINS)})
    for module in (*modules, "harness.judging.endpoint", "harness.judging.local", "harness.judging.reward"):
        import_module(module)
    return tuple(modules)
