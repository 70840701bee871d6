"""Names of things that live elsewhere: files, base models and SAEs, by path or by public name."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    model_validator,
)

from harness.data.sources import is_hub, source_hash
from harness.files import content_hash

P = TypeVar("P", str, Path)


def _found(path: P, info: ValidationInfo) -> P:
    """``path`` from the context's ``folder`` on; as it is where the context names none."""
    folder = (info.context or {}).get("folder")
    return path if folder is None else type(path)(os.path.abspath(os.path.join(folder, os.path.expanduser(path))))


def _written(path: str | Path, info: SerializationInfo) -> str:
    """``path`` relative to the context's ``folder``; the hash of what is there where the context wants ``contents``."""
    context: dict[str, Any] = info.context or {}
    if context.get("contents"):
        return content_hash(path)
    folder = context.get("folder")
    return str(path) if folder is None else Path(os.path.relpath(path, folder)).as_posix()


InputPath = Annotated[Path, AfterValidator(_found), PlainSerializer(_written, when_used="json")]
"""A file or folder that a setting of a method, benchmark or judge names; in a suite it starts at the suite's folder.

Pydantic's context decides: ``{"folder": F}`` reads and writes (as JSON) paths relative to F, ``{"contents": True}``
writes the hash of what is at the path in its place.
"""


def _found_data(path: Path, info: ValidationInfo) -> Path:
    return path if is_hub(path) else _found(path, info)


def _written_data(path: Path, info: SerializationInfo) -> str:
    context: dict[str, Any] = info.context or {}
    if context.get("contents"):
        return source_hash(path)
    return str(path) if is_hub(path) else _written(path, info)


TriplesPath = Annotated[Path, AfterValidator(_found_data), PlainSerializer(_written_data, when_used="json")]
"""As `InputPath`, of preference data in any of the places that `harness.data.sources` reads."""
_PathText = Annotated[str, AfterValidator(_found), PlainSerializer(_written, when_used="json")]


class _Ref(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    path: _PathText | None = None

    def located(self) -> Self:
        """The same with an absolute path, to be kept in an artifact."""
        return self if self.path is None else self.model_copy(update={"path": str(Path(self.path).resolve())})


class WeightsRef(_Ref):
    """Weights or an adapter made elsewhere: ``path`` is a local folder, ``id`` (with ``revision``) a Hugging Face
    name."""

    path: _PathText | None = Field(None, description="local folder with safetensors")
    id: str | None = Field(None, description="Hugging Face id, e.g. HuggingFaceH4/zephyr-7b-beta")
    revision: str | None = Field(None, description="commit, tag or branch of `id`")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        return _checked_source(self)

    @property
    def source(self) -> str:
        """The name or the folder; ValueError for a folder that is missing."""
        if self.path is not None and not Path(self.path).is_dir():
            raise ValueError(f"there is no folder {self.path!r}")
        return self.path or str(self.id)

    def __str__(self) -> str:
        return self.path or str(self.id)


def _checked_source(ref: Any) -> Any:
    """``ref``, with exactly one of ``path`` and ``id``, and ``revision`` only with ``id``; else ValueError."""
    if (ref.path is None) == (ref.id is None):
        raise ValueError("give exactly one of `path` (a local folder) and `id` (a Hugging Face name)")
    if ref.path is not None and ref.revision is not None:
        raise ValueError("`revision` belongs to `id`; a local folder is identified by the hash of its files")
    return ref


def is_gguf(path: str) -> bool:
    """Whether ``path`` names a GGUF file (by its ending; it need not exist)."""
    return path.lower().endswith(".gguf")


class ModelRef(_Ref):
    """A base model: ``path`` is a local folder or a GGUF file, ``id`` (with ``revision``) a Hugging Face name."""

    path: _PathText | None = Field(None, description="local folder in Hugging Face format, or a GGUF file")
    id: str | None = Field(None, description="Hugging Face model id, e.g. google/gemma-2-2b")
    revision: str | None = Field(None, description="commit, tag or branch of `id`")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype the weights are loaded in")
    chat: Literal["auto", "tokenizer", "hh"] = Field("auto", description="chat format (see harness.model.chat)")
    # How the model is held here, no part of what it is: so no artifact, plan or identity has them.
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None, exclude=True, description="spread it over all devices, memory and disk, as transformers' device_map"
    )
    max_memory: dict[int | Literal["cpu"], int | str] | None = Field(
        None, exclude=True, description="with device_map: at most how much of each, e.g. {0: 20GiB, cpu: 60GiB}"
    )

    @model_validator(mode="after")
    def _spread(self) -> Self:
        if self.max_memory is None:
            return self
        if self.device_map is None:
            raise ValueError("`max_memory` is for a device_map; give `device_map: auto` too, or leave it out")
        for place, size in self.max_memory.items():
            if not re.fullmatch(r"[1-9]\d*([KMGT]i?B)?", str(size)):
                raise ValueError(f"max_memory of {place}: {size!r} is no size; give bytes, or a text such as 20GiB")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        return _checked_source(self)

    @property
    def source(self) -> str:
        """Where it is: the name, folder or GGUF file; one that is missing raises ValueError."""
        if self.id is not None:
            return self.id
        assert self.path is not None
        if is_gguf(self.path):
            if not Path(self.path).is_file():
                raise ValueError(f"base model file {self.path!r} does not exist")
            return self.path
        if not (Path(self.path) / "config.json").is_file():
            raise ValueError(
                f"base model folder {self.path!r} has no config.json; give a folder in Hugging Face format"
            )
        return self.path


def model_ref(base: str, chat: str) -> ModelRef:
    """What a command line calls a base model: a folder that exists, a GGUF file, or a Hugging Face id[@revision].

    Raises ValueError for a chat format that is not known, and for a path that leads nowhere.
    """
    chats = get_args(ModelRef.model_fields["chat"].annotation)
    if chat not in chats:
        raise ValueError(f"--chat {chat!r} is not known; allowed: {', '.join(chats)}")
    if Path(base).is_dir() or is_gguf(base):
        return ModelRef.model_validate({"path": base, "chat": chat})
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ValueError(f"base model folder {base!r} does not exist")
    name, _, revision = base.partition("@")
    return ModelRef.model_validate({"id": name, "revision": revision or None, "chat": chat})


class SAERef(_Ref):
    """A sparse autoencoder: ``path`` is a SAELens folder, ``release`` + ``id`` a SAELens release name.

    ``norm_filter``: the SAE was trained without tokens whose residual is longer than this multiple of the median norm,
    so such tokens are left out of densities and never steered. Known by itself for SAEs whose metadata records it
    (those of `train-sae`) and for adamkarvonen's Qwen3 releases (10).
    Where a method takes one, a suite may give the name of an entry of its ``saes:`` table instead.
    """

    path: _PathText | None = Field(None, description="local SAELens folder (cfg.json, sae_weights.safetensors)")
    release: str | None = Field(None, description="SAELens release, e.g. gemma-scope-2b-pt-res-canonical")
    id: str | None = Field(None, description="SAE id inside the release, e.g. layer_7/width_16k/canonical")
    norm_filter: float | None = Field(None, gt=1, description="leave out tokens longer than this x the median norm")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        named = (info.context or {}).get("saes", {})
        if value not in named:
            raise ValueError(
                f"unknown SAE {value!r}; the suite's `saes:` table has: {', '.join(sorted(named)) or 'none'}"
            )
        entry = named[value]
        return entry.model_dump() if isinstance(entry, cls) else entry

    @model_validator(mode="after")
    def _one_source(self) -> "SAERef":
        if (self.path is None) == (self.release is None) or (self.release is None) != (self.id is None):
            raise ValueError("give either `path` (a SAELens folder) or both `release` and `id` (a SAELens name)")
        return self

    def __str__(self) -> str:
        return self.path if self.path is not None else f"{self.release}/{self.id}"


@dataclass(frozen=True)
class BaseShape:
    """What is known of a base model before its weights are loaded.

    ``model_type`` is transformers' name of its (text) architecture, "" where unknown; ``public_id`` its Hugging Face
    name, None for a folder; ``unknown_words`` finds the words of a text that the tokenizer has no token for,
    ``vocabulary`` maps its tokens to numbers and ``config`` is transformers' configuration, both None where unknown.
    ``on_paper``: only a plan is made, so that no weights, of SAEs neither, need be there or are looked at.
    """

    name: str
    n_layers: int
    d_model: int
    model_type: str = ""
    public_id: str | None = None
    unknown_words: Callable[[str], Sequence[str]] = field(default=lambda text: (), compare=False)
    vocabulary: Mapping[str, int] | None = field(default=None, compare=False, repr=False)
    config: Any = field(default=None, compare=False, repr=False)
    on_paper: bool = False
