"""Models from GGUF files: de-quantised once, into a folder in Hugging Face's format that everything else reads.

The folder lies in the cache (`cache_folder`) under the hash of the file, so a file that was moved is not unpacked
again and one that was changed is. Weights are stored in float32: what a block's scale and codes give exactly.
"""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_gguf_available

from harness.data.refs import ModelRef, is_gguf
from harness.files import atomic_folder, check_can_make, content_hash, locked, user_folder
from harness.model.pretrained import read_model, read_tokenizer
from harness.quiet import silenced

CACHE_VARIABLE = "DSPA_BENCH_CACHE"
_MAGIC = b"GGUF"


def cache_folder() -> Path:
    """Where unpacked models lie; it need not exist. $DSPA_BENCH_CACHE, else $XDG_CACHE_HOME/dspa-bench (~/.cache)."""
    return user_folder(CACHE_VARIABLE)


def source_of(ref: ModelRef) -> str:
    """What `from_pretrained` takes for ``ref``: its name, its folder, or the folder that a GGUF file was unpacked to.

    Raises ValueError for a path that is no model, and as `unpacked`.
    """
    return str(unpacked(ref.source)) if ref.path is not None and is_gguf(ref.path) else ref.source


def check_gguf(path: str | Path) -> None:
    """Raise ValueError, with what to do, for a file that cannot be a model: not GGUF, or no package to read it."""
    with Path(path).open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"base model {str(path)!r} is no GGUF file (it does not begin with {_MAGIC.decode()!r})")
    if not is_gguf_available():
        raise ValueError(f"base model {str(path)!r} is a GGUF file; to read it install the package: pip install gguf")


def unpacked(path: str | Path) -> Path:
    """The folder with configuration, tokenizer and de-quantised weights of a GGUF file, made when first asked for.

    Raises ValueError for a file that transformers cannot read, or whose architecture it does not know, and where the
    cache cannot be written to. Processes that ask at once wait for the one that unpacks.
    """
    check_gguf(path)
    folder = cache_folder() / "gguf" / content_hash(path)
    if not folder.is_dir():
        check_can_make(folder, f"${CACHE_VARIABLE}")
        lock = folder.with_name(f"{folder.name}.lock")
        with locked(lock, "cache", busy=None, mend=f"set ${CACHE_VARIABLE} to one that you may write to"):
            if not folder.is_dir():  # else another process was at it
                _unpack(Path(path), folder)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    folder_of_file = str(path.parent.absolute())
    try:
        with silenced():
            model = read_model(AutoModelForCausalLM, folder_of_file, gguf_file=path.name, dtype=torch.float32)
            tokenizer = read_tokenizer(folder_of_file, gguf_file=path.name)
    except Exception as problem:  # the readers of headers, tensors and vocabularies each raise their own
        reason = re.sub(r"\s+", " ", str(problem)) or type(problem).__name__
        raise ValueError(f"cannot read GGUF model {str(path)!r}: {reason}") from problem
    config = model.config
    config.__dict__.pop("quantization_config")  # the weights are plain numbers from now on; saving refuses others
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    with atomic_folder(folder) as partial, silenced():
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
