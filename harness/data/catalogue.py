"""The catalogue of external files (catalogue.yaml): source, licence, size, sha256, and which benchmark needs them."""

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class DataFile(BaseModel):
    """One external file, or a folder of files that come together.

    ``size`` (bytes) and ``sha256`` are those of the copy that this project was tested with, None where there is none;
    of a folder the sum of its files and `harness.files.content_hash`. With ``exact`` the address is believed to serve
    just that, and anything else is refused; without, the first fetch decides (see harness.data.state).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="place in the data folder")
    benchmarks: tuple[str, ...] = Field(min_length=1, description="who reads it; `tests` for this project's own tests")
    licence: str = Field(min_length=1, description="as stated by the source")
    url: str | None = Field(None, description="public address; None: `note` says how it was made")
    unpack: Literal["tar", "hh_triples", "sample_1000"] | None = Field(
        None, description="how what the address serves becomes the file (see harness.data.unpack)"
    )
    size: int | None = Field(None, ge=1, description="bytes")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    exact: bool = False
    needed: bool = Field(True, description="False: the benchmark runs without it, with less to show")
    note: str | None = None

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{path!r} is not a place inside the data folder")
        return path

    @model_validator(mode="after")
    def _consistent(self) -> "DataFile":
        if self.url is None and self.note is None:
            raise ValueError(f"{self.path}: without a url, a note must say where it comes from")
        if self.exact and (self.url is None or self.sha256 is None or self.unpack is not None):
            raise ValueError(f"{self.path}: exact needs a url that serves the file as it is, and its sha256")
        return self


@cache
def external_files() -> tuple[DataFile, ...]:
    """All external files, in the order of catalogue.yaml."""
    rows = yaml.safe_load((Path(__file__).parent / "catalogue.yaml").read_text(encoding="utf-8"))
    return tuple(DataFile.model_validate(row) for row in rows)


def benchmarks() -> tuple[str, ...]:
    """The names under which files can be asked for together."""
    return tuple(dict.fromkeys(name for file in external_files() for name in file.benchmarks))


def select(names: list[str]) -> tuple[DataFile, ...]:
    """The files of the benchmarks or places ``names``, all when it is empty; ValueError for an unknown name."""
    known = {file.path for file in external_files()} | set(benchmarks())
    for name in names:
        if name not in known:
            raise ValueError(
                f"no external file or benchmark is called {name!r}; benchmarks: {', '.join(benchmarks())}; "
                "`dspa-bench data list` names all files"
            )
    return tuple(f for f in external_files() if not names or f.path in names or set(f.benchmarks) & set(names))
