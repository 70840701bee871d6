"""Quantised base models: de-quantised once, into a folder in Hugging Face's format that everything else reads.

So their products are products of plain matrices, which is what bills count and adapters are trained on. GGUF files are
read, and folders whose config.json has a ``quantization_config`` that transformers can take back (FP8, MXFP4,
compressed-tensors, bitsandbytes, ...; some want a package or a GPU).

The folder lies in the cache (`cache_folder`) under the hash of what it was made from, so a model that was moved is not
unpacked again and one that was changed is. Weights are stored in float32: what a block's scale and codes give exactly.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.import_utils import is_gguf_available

from harness.data.refs import ModelRef, is_gguf
from harness.files import atomic_folder, check_can_make, content_hash, folder_hash, load_json, locked, user_folder
from harness.model.pretrained import GIVE_INSTEAD, read_model, read_tokenizer
from harness.quiet import silenced

CACHE_VARIABLE = "DSPA_BENCH_CACHE"
_MAGIC = b"GGUF"
Read = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def cache_folder() -> Path:
    """Where unpacked models lie; it need not exist. $DSPA_BENCH_CACHE, else $XDG_CACHE_HOME/dspa-bench (~/.cache)."""
    return user_folder(CACHE_VARIABLE)


def source_of(ref: ModelRef) -> str:
    """What `from_pretrained` takes for ``ref``: its name, its folder, or the folder that its plain weights are in.

    Raises ValueError for a path that is no model, and as `unpacked`.
    """
    source = ref.source
    return source if ref.path is None or not is_quantised(source) else str(unpacked(source))


def is_quantised(path: str | Path) -> bool:
    """Whether a local model is a GGUF file, or a folder whose configuration says that its weights are quantised."""
    file = Path(path) / "config.json"
    if is_gguf(str(path)) or not file.is_file():
        return is_gguf(str(path))
    config = load_json(file, "model")
    return isinstance(config, dict) and config.get("quantization_config") is not None


def check_gguf(path: str | Path) -> None:
    """Raise ValueError, with what to do, for a file that cannot be a model: not GGUF, or no package to read it."""
    with Path(path).open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"base model {str(path)!r} is no GGUF file (it does not begin with {_MAGIC.decode()!r})")
    if not is_gguf_available():
        raise ValueError(f"base model {str(path)!r} is a GGUF file; to read it install the package: pip install gguf")


def unpacked(path: str | Path) -> Path:
    """The folder with configuration, tokenizer and plain weights of a quantised model, made when first asked for.

    Raises ValueError for what transformers cannot read or take back, and where the cache cannot be written to.
    Processes that ask at once wait for the one that unpacks.
    """
    path, from_file = Path(path), is_gguf(str(path))
    if from_file:
        check_gguf(path)
    files = [path] if from_file else sorted(file for file in path.iterdir() if file.is_file())
    state = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    folder = cache_folder() / ("gguf" if from_file else "plain") / _hash(path, state)
    if not folder.is_dir():
        check_can_make(folder, f"${CACHE_VARIABLE}")
        lock = folder.with_name(f"{folder.name}.lock")
        with locked(lock, "cache", busy=None, mend=f"set ${CACHE_VARIABLE} to one that you may write to"):
            if not folder.is_dir():  # else another process was at it
                _write(*(_of_file(path) if from_file else _of_folder(path)), folder)
    return folder


@lru_cache(maxsize=64)
def _hash(path: Path, state: tuple) -> str:
    """By content, read once as long as the files' ``state`` is the same: weights may be many gigabytes."""
    return content_hash(path) if path.is_file() else folder_hash(path)


def _of_file(path: Path) -> Read:
    folder = str(path.parent.absolute())
    return _reading(
        lambda: (
            read_model(AutoModelForCausalLM, folder, gguf_file=path.name, dtype=torch.float32),
            read_tokenizer(folder, gguf_file=path.name),
        ),
        lambda reason: f"cannot read GGUF model {str(path)!r}: {reason}",
    )


def _of_folder(path: Path) -> Read:
    told = load_json(path / "config.json", "model")["quantization_config"]
    method = told.get("quant_method", "unnamed") if isinstance(told, dict) else "unnamed"

    def read() -> Read:
        config: Any = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        loads_plain = hasattr(AutoQuantizationConfig.from_dict(dict(told)), "dequantize")
        if loads_plain:
            config.quantization_config = {**told, "dequantize": True}
        model: Any = read_model(AutoModelForCausalLM, str(path), config=config, dtype=torch.float32)
        return model if loads_plain else model.dequantize(dtype=torch.float32), read_tokenizer(str(path))

    return _reading(
        read,
        lambda reason: (
            f"the weights of {str(path)!r} are quantised ({method}), and cannot be de-quantised here: "
            f"{reason}; {GIVE_INSTEAD}"
        ),
    )


def _reading(read: Callable[[], Read], complaint: Callable[[str], str]) -> Read:
    try:
        with silenced():
            return read()
    except Exception as problem:  # the readers of headers, tensors and vocabularies each raise their own
        raise ValueError(complaint(re.sub(r"\s+", " ", str(problem))[:500] or type(problem).__name__)) from problem


def _write(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    config = model.config
    config.__dict__.pop("quantization_config", None)  # the weights are plain numbers from now on; saving refuses others
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    with atomic_folder(folder) as partial, silenced():
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
