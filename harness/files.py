"""JSON in, whole files out: complaints name file and place, and nobody sees a half-written file."""

import gzip
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    InstanceOf,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
)

from harness.seals import read_document, sealed_document

T = TypeVar("T")
Text = Annotated[InstanceOf[str], "a string"]  # pydantic's own check refuses halves of a character, which JSON may hold
Number = Annotated[StrictInt | StrictFloat, "a number"]


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; JSONDecodeError also for what Python cannot hold: endless nesting, endless numbers."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from None
    except UnicodeDecodeError:
        raise json.JSONDecodeError("it is not UTF-8 text", "", 0) from None
    except ValueError as problem:  # int() of thousands of digits
        raise json.JSONDecodeError(str(problem).partition(";")[0], "", 0) from None


def read_jsonl(path: str | Path, what: str, *, whole: bool = True) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) for every non-blank line; ``what`` names the file in error messages.

    Raises ValueError when the file is missing or empty, or a line is not a JSON object (file:line); ``whole`` refuses
    halves of a character ("\\ud800"), which JSON may hold and no tokenizer takes.
    """
    rows = []
    # Not splitlines: JSON strings may hold U+2028 and its like, which it takes for the end of a line.
    for number, line in enumerate(read_text(path, what).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path}:{number}: not valid JSON ({problem.msg} at column {problem.colno})") from None
        if whole and _has_halves(line, row):
            raise ValueError(f"{path}:{number}: holds half a character (such as \\ud800), which is no text; mend it")
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        rows.append((number, row))
    if not rows:
        raise ValueError(f"{path}: the {what} file is empty")
    return rows


def _has_halves(text: str, value: Any) -> bool:
    """Whether the ``value`` that a JSON ``text`` stands for has surrogates without their other half."""
    if "\\ud" not in text and "\\uD" not in text:
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def checked(kind: type[T], row: Any, place: str) -> T:
    """``row`` as the dataclass ``kind``, each of whose annotations ends with words for what the field must be.

    Raises ValueError at ``place`` (file:line) for missing fields, or else for the first one that is something else.
    """
    if not isinstance(row, dict):
        needed = [f.name for f in fields(kind) if f.default is MISSING]  # type: ignore[arg-type]
        raise ValueError(f"{place}: expected an object with {', '.join(needed)}, got {type(row).__name__}")
    try:
        return _adapter(kind).validate_python(row)
    except ValidationError as problem:
        errors = problem.errors(include_url=False)
    missing = [str(error["loc"][0]) for error in errors if error["type"] == "missing" and error["loc"][0] not in row]
    must_be = {name: hint.__metadata__[-1] for name, hint in get_type_hints(kind, include_extras=True).items()}
    if missing:
        raise ValueError(f"{place}: missing {', '.join(f'{name} ({must_be[name]})' for name in missing)}")
    name = str(errors[0]["loc"][0])
    raise ValueError(f"{place}: {name!r} must be {must_be[name]}, got {row[name]!r}")


_adapter = cache(TypeAdapter)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


Words = Annotated[Text, AfterValidator(_not_blank), "a non-empty string"]


def read_text(path: str | Path, what: str) -> str:
    """The file as UTF-8, a .gz file unpacked; raises ValueError when it is missing, damaged or not text."""
    if not Path(path).is_file():
        raise ValueError(f"{what} file {str(path)!r} does not exist")
    try:
        if Path(path).suffix == ".gz":
            return gzip.decompress(Path(path).read_bytes()).decode("utf-8")
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not UTF-8 text (byte {problem.start})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise ValueError(f"{path}: not a gzip file that can be read ({problem})") from None


def write_text(path: str | Path, text: str) -> None:
    """Write beside the target and rename into place; parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, in ASCII so that every reader splits lines alike (see `write_text`)."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside ``path`` to be filled; it becomes ``path`` when the block ends, and goes when it fails.

    So the folder is there complete or not at all. What a killed process left unfinished is removed by the next one.
    An existing ``path`` raises ValueError or, with ``replace``, is replaced as a whole.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise ValueError(f"{path} exists already and is never overwritten; choose another folder")
    partial, replaced = (path.with_name(f"{path.name}.{kind}") for kind in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def folder_hash(path: str | Path) -> str:
    """sha256 of the names and contents of the files directly in a folder, hidden ones left out: how models and SAEs
    are identified."""
    root = Path(path)
    return _hash_of(root, (p for p in root.iterdir() if not p.name.startswith(".")))


def content_hash(path: str | Path) -> str:
    """sha256 of a file, or of the names and contents of all files below a folder."""
    root = Path(path)
    return _hash_of(root, [root] if root.is_file() else root.rglob("*"))


def _hash_of(root: Path, found: Iterable[Path]) -> str:
    files = sorted(p for p in found if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def load_json(path: str | Path, what: str) -> Any:
    """The JSON in ``path``; ValueError naming file and line when it is missing or broken."""
    text = read_text(path, what)
    try:
        value = parse_json(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path}:{problem.lineno}: not valid JSON: {problem.msg}") from None
    if _has_halves(text, value):
        raise ValueError(f"{path}: holds half a character (such as \\ud800), which is no text; mend it")
    return value


def read_json(path: str | Path) -> Any | None:
    """`load_json` of a run's file ``path``, or None when there is no such file."""
    return load_json(path, "run") if Path(path).is_file() else None


def without_nan(value: Any) -> Any:
    """``value`` as JSON can hold it: a number that is none (NaN, infinite) becomes null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of ``value`` as indented JSON; a NaN raises ValueError (it is not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: str | Path, value: Mapping[str, Any]) -> None:
    """`write_json` with a checksum (see `harness.seals`)."""
    write_text(path, sealed_document(value))


def read_sealed(path: str | Path) -> Any | None:
    """What `write_sealed` or `write_json` wrote, None when there is no such file; ValueError naming it when it is
    damaged."""
    try:
        return read_document(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):  # at once: another process may take it away
        return None
    except json.JSONDecodeError as problem:
        raise ValueError(f"{path}:{problem.lineno}: not valid JSON: {problem.msg}") from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not UTF-8 text (byte {problem.start})") from None
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


class Document(BaseModel):
    """Base of what is kept as one JSON file, or as a part of one: unknown keys are refused, nothing is changed.

    ``sealed`` ones carry a checksum in their file (see `harness.seals`).
    """

    # NaN stays NaN on the way out, so that `write_json` refuses it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
    sealed: ClassVar[bool] = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """The content of the file ``path``; ValueError naming file and keys when it is missing or not such a one."""
        data = read_sealed(path)
        if data is None:
            raise ValueError(f"{path} is missing; rerun the suite to repair the run folder")
        try:
            return cls.model_validate(data)
        except ValidationError as problem:
            raise ValueError(f"{path}: {_complaints(problem)}; did another version write it?") from None

    def write(self, path: Path) -> None:
        """Write to ``path``, renamed into place; a NaN raises ValueError."""
        (write_sealed if self.sealed else write_json)(path, self.model_dump(mode="json"))


def _complaints(problem: ValidationError) -> str:
    missing, texts = [], []
    for error in problem.errors(include_url=False):
        key = ".".join(map(str, error["loc"]))
        if error["type"] == "missing":
            missing.append(key)
        elif error["type"] == "extra_forbidden":
            texts.append(f"unknown key {key}")
        else:
            texts.append((f"{key}: " if key else "") + error["msg"].removeprefix("Value error, "))
    if missing:
        texts.insert(0, f"missing {', '.join(missing)}")
    return "; ".join(texts)


SAY_SECONDS = 3.0
"""After which a process that waits for a lock says so."""


@contextmanager
def locked(lock_file: Path, what: str, *, busy: str | None, mend: str, seconds: float = 0.0) -> Iterator[None]:
    """Hold ``lock_file`` for this process; its folder, called ``what``, is made.

    While another live process holds it: ValueError with ``busy`` after so many ``seconds``, or a wait for as long as it
    takes where that is None. ValueError with ``mend`` when the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock, folder = FileLock(lock_file), lock_file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=SAY_SECONDS if busy is None else seconds)
        except Timeout:
            if busy is not None:
                raise
            print(f"waiting for another process that holds {lock_file}", file=sys.stderr)
            lock.acquire()
    except Timeout:
        raise ValueError(busy) from None
    except OSError as problem:
        raise ValueError(f"cannot write to the {what} {str(folder)!r} ({problem.strerror}); {mend}") from None
    try:
        yield
    finally:
        lock.release()


def user_folder(variable: str) -> Path:
    """The folder that the environment's ``variable`` names, else $XDG_CACHE_HOME/dspa-bench (~/.cache); it need not be
    there."""
    if given := os.environ.get(variable):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dspa-bench"


_LONGEST_NAME, _LONGEST_PATH = 200, 3000
"""Bytes of what is still good for a file of ours: systems take 255 and 4096, and names inside it are added."""


def check_can_make(path: Path, option: str = "--out") -> None:
    """Raise ValueError when the file or folder ``path``, given as ``option``, could not be made; makes nothing."""
    path = path.absolute()
    if os.path.islink(path) and not path.exists():
        raise ValueError(f"{option} {str(path)!r} is a link that leads nowhere; remove it, or choose another place")
    long = [part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME]
    if long or len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(f"{option} {str(path)[:60]!r}... is too long for a file system; choose a shorter one")
    there = next(parent for parent in path.parents if os.path.lexists(parent))
    if not there.is_dir():
        raise ValueError(f"{option} {str(path)!r} cannot be made: {str(there)!r} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {str(path)!r} cannot be made: no permission to write to {str(there)!r}")
