"""JSON files with a typed content: read with complaints that name file and key, written as a whole."""

from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.files import read_json, write_json

M = TypeVar("M", bound=BaseModel)


class Document(BaseModel):
    """Base of what is kept as one JSON file, or as a part of one: unknown keys are refused, nothing is changed."""

    # NaN stays NaN on the way out, so that `write_json` refuses it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The content of the file ``path`` (see `read_document`)."""
        return read_document(path, cls)

    def write(self, path: Path) -> None:
        """Write to ``path``, renamed into place; a NaN raises ValueError."""
        write_json(path, self.model_dump(mode="json"))


def read_document(path: Path, cls: type[M]) -> M:
    """The JSON file ``path`` as a ``cls``; ValueError naming file and keys when it is missing or not one."""
    data = read_json(path)
    if data is None:
        raise ValueError(f"{path} is missing; rerun the suite to repair the run folder")
    try:
        return cls.model_validate(data)
    except ValidationError as problem:
        raise ValueError(f"{path}: {_complaints(problem)}; did another version write it?") from None


def _complaints(problem: ValidationError) -> str:
    errors = problem.errors(include_url=False)
    missing = [_dotted(error["loc"]) for error in errors if error["type"] == "missing"]
    texts = [f"missing {', '.join(missing)}"] if missing else []
    for error in errors:
        if error["type"] == "extra_forbidden":
            texts.append(f"unknown key {_dotted(error['loc'])}")
        elif error["type"] != "missing":
            where = f"{_dotted(error['loc'])}: " if error["loc"] else ""
            texts.append(where + error["msg"].removeprefix("Value error, "))
    return "; ".join(texts)


def _dotted(key: tuple[str | int, ...]) -> str:
    return ".".join(map(str, key))
