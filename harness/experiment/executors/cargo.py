"""What a node needs that does not see the driver's files: which files those are, and a tree of them on the node.

On the node they lie in a folder of their own under the paths that they have on the driver's machine, so that every
path which is relative to the run folder leads to the same. Contents are kept by their hash and linked into the trees.
"""

import fcntl
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from harness.data.external import benchmarks as benchmarks_with_files
from harness.data.external import data_folder, select
from harness.data.refs import ModelRef, SAERef, WeightsRef
from harness.data.sources import is_hub
from harness.files import locked, user_folder
from harness.plugins import HOME
from harness.run_folder.layout import RunFolder

if TYPE_CHECKING:  # a node's process sets its environment before it loads anything heavy
    from harness.experiment.suite import Suite

CHUNK = 16 * 2**20
"""Bytes that travel at once."""
_CACHE_VARIABLE = "DSPA_BENCH_CACHE"


@dataclass(frozen=True)
class Item:
    """A file of the driver's machine: its absolute ``path`` there, the hash of its content, its size in bytes."""

    path: str
    sha256: str
    size: int


def cargo_of(suite: "Suite", run: RunFolder) -> tuple[Item, ...]:
    """All files that the cells of ``run`` read: the run's own documents, judges that it trained, and whatever the
    suite names by a path. Public names are for each node to find by itself."""
    documents = [run.path / name for name in ("suite.yaml", "plan.json", "left_out.json")]
    trained = [path for path in run.judging.glob("[!.]*") if path.is_dir()]
    named = _named([suite.file, *suite.benchmarks.values(), *suite.judges.values(), [m for _, m in suite.methods]])
    known = {benchmark.name for benchmark in suite.benchmarks.values()} & set(benchmarks_with_files())
    external = [data_folder().absolute() / file.path for file in select(sorted(known))] if known else []
    found = {file for place in (*documents, *trained, *named, *external, *_plugins(suite)) for file in _below(place)}
    return tuple(Item(str(file), _sha256(file), file.stat().st_size) for file in sorted(found))


def _named(value: Any) -> Iterator[Path]:
    """Every path in settings, at any depth."""
    if isinstance(value, Path):
        if not is_hub(value):
            place, _, split = str(value).rpartition("#")  # a split of a folder
            yield value if value.exists() or not split else Path(place)
    elif isinstance(value, BaseModel):
        if isinstance(value, ModelRef | SAERef | WeightsRef) and value.path is not None:
            yield Path(value.path)
        yield from _named([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, Mapping):
        yield from _named(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from _named(one)


def _plugins(suite: "Suite") -> Iterator[Path]:
    """Modules that the suite names and that are no installed package's, as those beside the suite."""
    for name in suite.file.plugins:
        file = Path(getattr(sys.modules[name], "__file__", None) or HOME).absolute()
        if not file.is_relative_to(HOME) and "site-packages" not in file.parts:
            yield file.parent if file.name == "__init__.py" else file


def _below(place: Path) -> Iterator[Path]:
    """The file ``place``, or the files in the folder; hidden ones and what Python compiled are left out."""
    if place.is_file():
        yield place.absolute()
    for folder, below, files in os.walk(place.absolute(), followlinks=True):
        below[:] = [name for name in below if not name.startswith((".", "__pycache__"))]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


Read = Callable[[str, int], bytes]
"""Up to `CHUNK` bytes of a file of the driver's machine, from an offset on."""


class Mirror:
    """A tree of the driver's files on this machine, for one process; it goes when a later one finds its owner gone."""

    def __init__(self) -> None:
        home = user_folder(_CACHE_VARIABLE).absolute() / "ray"
        self._contents, trees = home / "contents", home / "trees"
        self._contents.mkdir(parents=True, exist_ok=True)
        self.root = trees / uuid.uuid4().hex
        with locked(home / "trees.lock", "cache", busy=None, mend=f"set {_CACHE_VARIABLE} to another folder"):
            for tree in trees.glob("*"):
                with suppress(OSError), (tree / ".owner").open("a") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees a dead owner's
                    shutil.rmtree(tree)
            self.root.mkdir(parents=True)
            self._owner = os.open(self.root / ".owner", os.O_WRONLY | os.O_CREAT)  # open for as long as the process is
            fcntl.flock(self._owner, fcntl.LOCK_EX)

    def of(self, path: str | Path) -> Path:
        """Where the driver's absolute ``path`` is here."""
        return Path(f"{self.root}{path}")

    def bring(self, items: Iterable[Item], read: Read) -> None:
        """Lay out ``items``; of each content that is not here yet the first process gets it, and others wait for it."""
        for item in items:
            content = self._contents / item.sha256
            mend = f"set {_CACHE_VARIABLE} on the nodes to a folder with room"
            with locked(self._contents / f"{item.sha256}.lock", "cache", busy=None, mend=mend):
                if not content.is_file():
                    _fetch(item, content, read)
            place = self.of(item.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(content, place)


def _fetch(item: Item, content: Path, read: Read) -> None:
    partial, hashed = content.with_suffix(".partial"), hashlib.sha256()
    with partial.open("wb") as file:
        while file.tell() < item.size and (chunk := read(item.path, file.tell())):
            hashed.update(chunk)
            file.write(chunk)
    if hashed.hexdigest() != item.sha256:
        raise ValueError(f"{item.path} was changed on the driver's machine since the run began; start the run again")
    partial.rename(content)
