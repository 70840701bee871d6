"""A name -> class table: a duplicate name raises, an unknown one lists what is known."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from typing import Any, Generic, TypeVar

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
            raise ValueError(f"unknown {self.noun} {name!r}; known: {', '.join(self)}{alike(name, self)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def alike(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of ``known`` is spelt much like ``name``, to be put behind a complaint."""
    found = get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


PLUGINS, COMMANDS, SUITES = "dspa_bench.plugins", "dspa_bench.commands", "dspa_bench.suites"
REPORTS, TRUTHS = "dspa_bench.reports", "dspa_bench.truths"


@dataclass(frozen=True)
class Report:
    """What an entry point of REPORTS hands back: ``page`` to open, and ``summary``, text or anything that rich prints,
    for the terminal."""

    page: Path
    summary: Any = None


HOME = Path(__file__).parents[1]
"""The folder that this package lies in, and with it the others of its distribution."""


def declared(group: str) -> list[EntryPoint]:
    """The entry points of ``group``, by name.

    ValueError when there is none, which means nothing is installed, and when a file of the user's hides one of the
    packages that come with this one.
    """
    found = sorted(entry_points(group=group), key=lambda entry: entry.name)
    if not found:
        raise ValueError(f"no installed package has entry points {group!r}; in a checkout run: pip install -e .")
    for name, place in _hidden(found):
        raise ValueError(
            f"{str(place)!r} hides dspa-bench's own package {name!r}: Python looks in {str(place.parent)!r} first (the "
            "folder of your script or notebook, or one on PYTHONPATH). Rename it, start Python in another folder, or "
            "use the command dspa-bench, which it does not disturb"
        )
    return found


def put_first() -> None:
    """Let Python find the packages that come with this one, before any of the same name on PYTHONPATH.

    For the program alone, where nobody else's code wants its own. Changes sys.path only where something hides them;
    worker processes inherit it.
    """
    folders = {str(place.parent.resolve()) for _, place in _hidden(list(entry_points(group=PLUGINS)))}
    for index, entry in enumerate(sys.path):
        if str(Path(entry).resolve()) in folders:  # '' is the working folder
            sys.path.insert(index, str(HOME))
            return


def _hidden(entries: Sequence[EntryPoint]) -> Iterator[tuple[str, Path]]:
    """(package, the file or folder of another that would be imported in its place) among those of HOME."""
    for name in sorted({entry.module.partition(".")[0] for entry in entries}):
        if not (HOME / name / "__init__.py").is_file():
            continue  # of another distribution
        spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
        place = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))) if spec is not None else HOME
        place = place.parent if place.name == "__init__.py" else place
        if spec is not None and place.resolve() != (HOME / name).resolve():
            yield name, place


def installed(module: str) -> bool:
    """Whether a module of this dotted name can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def need(module: str, what: str) -> None:
    """Raise ValueError where ``what`` needs a package that is not installed, with the extra of ours that brings it.

    An extra is called like the module that it brings.
    """
    if not installed(module):
        extra = module.replace("_", "-")
        raise ValueError(
            f"{what} needs the package {module}, which is not installed; install it: pip install 'dspa-bench[{extra}]' "
            "('dspa-bench[all]' for everything; in a checkout '.' stands for dspa-bench)"
        )


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every plugin module once, which fills the registries; returns their names.

    The harness's own judges and engines are registered with them.
    """
    modules = sorted({entry.value for entry in declared(PLUGINS)})
    own = ("harness.judging.endpoint", "harness.judging.local", "harness.judging.reward")
    for module in (*modules, *own, "harness.engine.server", "harness.engine.vllm_engine"):
        import_module(module)
    return tuple(modules)


def import_beside(plugin: str, folder: Path) -> None:
    """Import a module that a suite in ``folder`` names; it may lie there. ValueError for whatever its code ends in."""
    beside = str(folder.absolute())
    if beside not in sys.path:
        sys.path.append(beside)  # last, so that nothing in it hides an installed package
    try:
        import_module(plugin)
    except (Exception, SystemExit) as problem:  # it is anybody's code
        lacking = problem.name if isinstance(problem, ModuleNotFoundError) else None
        if lacking is not None and f"{plugin}.".startswith(f"{lacking}."):
            raise ValueError(f"no Python module {plugin!r} to import; put it beside the suite, or install it") from None
        frames = [frame for frame in extract_tb(problem.__traceback__) if "importlib" not in frame.filename]
        where = f"{frames[-1].filename}:{frames[-1].lineno}: " if len(frames) > 1 else ""
        raise ValueError(
            f"plugin {plugin!r} cannot be imported: {where}{type(problem).__name__}: {problem}"
        ) from problem
