"""Where preference data is, a file, a folder of the `datasets` library or a name on the hub, and reading its rows.

A file is JSONL (also .jsonl.gz), a JSON array, Parquet or CSV. ``FOLDER#SPLIT`` names a split of a folder, and
``hub:OWNER/NAME[/CONFIG][@REVISION][#SPLIT]`` a dataset on the hub.
"""

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.files import content_hash, load_json, parse_json, read_jsonl, read_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB = "hub:"
"""What the name of a dataset on the hub begins with."""
_KINDS = "JSONL (.jsonl, .jsonl.gz), a JSON array (.json), Parquet (.parquet), CSV (.csv), or a datasets folder"


@dataclass(frozen=True)
class Rows:
    """The rows of a source, each with its number: a line of a text file, else its place from 1 on."""

    name: str
    unit: Literal["line", "row"]
    rows: list[tuple[int, dict[str, Any]]]

    def place(self, number: int) -> str:
        """``FILE:LINE``, or ``FILE: row NUMBER``."""
        return f"{self.name}:{number}" if self.unit == "line" else f"{self.name}: row {number}"


def is_hub(path: str | Path) -> bool:
    """Whether ``path`` is the name of a dataset on the hub."""
    return str(path).startswith(HUB)


def read_rows(path: str | Path, what: str, columns: Sequence[str]) -> Rows:
    """All rows of the source ``path``, ``what`` it is called in messages; of wide tables only ``columns``.

    Raises ValueError for a source that is missing, empty, damaged or of no known kind, and for a split that is missing
    or not given.
    """
    if is_hub(path):
        return _of_dataset(str(path), _from_hub(str(path)), what, columns)
    place, split = _split_of(Path(path))
    if place.is_dir():
        return _of_dataset(str(path), _from_folder(place, split), what, columns)
    if split is not None:
        raise ValueError(f"{place} is no folder of the datasets library, so it has no split {split!r}")
    kind = place.suffix.lower()
    if kind == ".parquet":
        return _of_parquet(place, what, columns)
    if kind == ".csv":
        return _of_csv(place, what)
    if kind in (".arrow", ".xlsx", ".zip", ".zst", ".tsv"):
        raise ValueError(f"{place}: {what} are not read from {kind} files; give {_KINDS}")
    if read_text(place, what).lstrip().startswith("["):
        return _of_array(place, what)
    return Rows(str(path), "line", read_jsonl(place, what))


def source_hash(path: str | Path) -> str:
    """sha256 (hex) of what is at ``path``: of a file its content, of a split its folder's, of the hub its rows."""
    if is_hub(path):
        dataset = _from_hub(str(path))
        lines = (json.dumps(row, sort_keys=True, default=str) for row in dataset)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    place, split = _split_of(Path(path))
    found = content_hash(place)
    return found if split is None else hashlib.sha256(f"{found}#{split}".encode()).hexdigest()


def _split_of(path: Path) -> tuple[Path, str | None]:
    """(the file or folder, the split that is named behind '#')."""
    place, mark, split = str(path).rpartition("#")
    return (path, None) if not mark or path.exists() or not split else (Path(place), split)


def _of_array(path: Path, what: str) -> Rows:
    found = load_json(path, what)
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number}: expected a JSON object, got {type(row).__name__}")
    return _rows(str(path), found, what)


def _of_csv(path: Path, what: str) -> Rows:
    """Cells are text; one that is a JSON array of objects is a list of messages."""
    read_text(path, what)  # missing, or not UTF-8
    csv.field_size_limit(2**31 - 1)
    rows: list[tuple[int, dict[str, Any]]] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        start = 2
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}:{start}: has another number of cells than the header")
                rows.append((start, {key: _cell(cell) for key, cell in row.items()}))
                start = reader.line_num + 1
        except csv.Error as problem:
            raise ValueError(f"{path}:{start}: not valid CSV ({problem})") from None
    if not rows:
        raise ValueError(f"{path}: the {what} file is empty")
    return Rows(str(path), "line", rows)


def _cell(text: str) -> Any:
    if not text.lstrip().startswith("[{"):
        return text
    try:
        value = parse_json(text)
    except json.JSONDecodeError:
        return text
    return value if all(isinstance(item, dict) for item in value) else text


def _of_parquet(path: Path, what: str, columns: Sequence[str]) -> Rows:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    if not path.is_file():
        raise ValueError(f"{what} file {str(path)!r} does not exist")
    try:
        with ParquetFile(path) as file:
            there = file.schema_arrow.names
            rows = file.read(columns=_wanted(there, columns)).to_pylist()
    except ArrowException as problem:
        raise ValueError(f"{path}: not a Parquet file that can be read ({problem})") from None
    return _rows(str(path), rows, what)


def _from_folder(path: Path, split: str | None) -> "Dataset":
    """A folder of ``save_to_disk``, or one of data files that ``load_dataset`` understands."""
    from datasets import load_dataset, load_from_disk

    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    return _chosen(str(path), split, lambda: load_from_disk(path) if saved else load_dataset(str(path)))


def _from_hub(name: str) -> "Dataset":
    from datasets import load_dataset

    address, _, split = name.removeprefix(HUB).partition("#")
    address, _, revision = address.partition("@")
    owner, *parts = address.split("/")
    if not owner or len(parts) not in (1, 2) or not all(parts):
        raise ValueError(f"{name!r} is no name on the hub; it is {HUB}OWNER/NAME[/CONFIG][@REVISION][#SPLIT]")
    config, revision = parts[1] if len(parts) == 2 else None, revision or None
    where = f"{owner}/{parts[0]}"
    return _chosen(name, split or None, lambda: load_dataset(where, name=config, revision=revision))


def _chosen(name: str, split: str | None, load: Callable[[], Any]) -> "Dataset":
    """The split of what ``load`` gives, which may be left out where there is only one."""
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        found: Dataset | DatasetDict = load()
    except (OSError, ValueError, DatasetsError) as problem:
        first = str(problem).strip().splitlines() or [type(problem).__name__]
        raise ValueError(f"{name}: the datasets library cannot read it: {first[0]}") from None
    if isinstance(found, Dataset):
        if split is not None:
            raise ValueError(f"{name}: this folder holds one split; leave out #{split}")
        return found
    splits = list(map(str, found))
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        asked = "which split to take is not said" if split is None else f"there is no split {split!r}"
        bare = name.partition("#")[0]
        raise ValueError(f"{name}: {asked}; give one of: {', '.join(f'{bare}#{one}' for one in splits)}")
    return found[split]


def _of_dataset(name: str, dataset: "Dataset", what: str, columns: Sequence[str]) -> Rows:
    kept = dataset.select_columns(_wanted(dataset.column_names, columns)).with_format(None)
    return _rows(name, (dict(row) for row in kept), what)  # type: ignore[arg-type]


def _wanted(there: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Those of ``columns`` that are there; all where none is, so that a message can name them."""
    return [name for name in columns if name in there] or list(there)


def _rows(name: str, rows: Iterable[dict[str, Any]], what: str) -> Rows:
    found = list(enumerate(rows, 1))
    if not found:
        raise ValueError(f"{name}: the {what} file is empty")
    return Rows(name, "row", found)
