"""The shared base model: weights, tokenizer and chat format behind one reference, local or by public name."""

import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from harness.data.refs import BaseShape, ModelRef, is_gguf
from harness.files import content_hash, folder_hash
from harness.model.chat import ChatFormat
from harness.model.decoder import input_device
from harness.model.dequantised import check_gguf, source_of
from harness.model.pretrained import check_model, read_config, read_model, read_tokenizer


@dataclass(frozen=True, eq=False)
class BaseModel:
    """An untouched causal LM. ``identity`` is its commit (public name) or the hash of its files (folder)."""

    ref: ModelRef
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat

    @classmethod
    def load(cls, ref: ModelRef, *, device: str = "cpu") -> "BaseModel":
        """Load by folder or by public name; ValueError for no such device and as `harness.model.pretrained`.

        With a ``device_map`` of ``ref``, that decides in the place of ``device``.
        """
        check_device(device)
        source = source_of(ref)
        tokenizer = read_tokenizer(source, revision=ref.revision)
        settings = {"revision": ref.revision, "dtype": getattr(torch, ref.dtype)}
        if ref.device_map is None:
            model = read_model(AutoModelForCausalLM, source, **settings)
            model.to(device)  # type: ignore[arg-type]
        else:
            model = _spread(source, ref, settings)
        # A model's own generation config (penalties, minimum lengths, cache kinds) would be merged into every request.
        model.generation_config = GenerationConfig()
        return cls(ref, model.eval(), tokenizer, ChatFormat.of(tokenizer, ref.chat))

    @cached_property
    def identity(self) -> str:
        """Commit hash of a public model, content hash of a local folder."""
        return base_identity(self.ref)

    @property
    def pinned(self) -> ModelRef:
        """The reference as it will still mean the same tomorrow: absolute path, or the commit and not a branch."""
        located = self.ref.located()
        return located if self.ref.id is None else located.model_copy(update={"revision": self.identity})

    @property
    def device(self) -> torch.device:
        """Where token ids go, and interventions live (see `harness.model.decoder.input_device`)."""
        return input_device(self.model)

    @property
    def max_length(self) -> int:
        """Context length in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)  # type: ignore[union-attr]


def _spread(source: str, ref: ModelRef, settings: dict[str, Any]) -> PreTrainedModel:
    """The model over all devices of this machine, then its memory, then its disk, as accelerate finds room."""
    folder = tempfile.mkdtemp(prefix="dspa-bench-offload-")  # of what safetensors do not hold as it is needed
    settings |= {"device_map": ref.device_map, "max_memory": ref.max_memory, "offload_folder": folder}
    try:
        model = read_model(AutoModelForCausalLM, source, **settings)
    except BaseException:
        rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, rmtree, folder, ignore_errors=True)
    return model


def check_device(device: str) -> None:
    """Raise ValueError for a name that is no torch device, or one this machine does not have."""
    try:
        if torch.zeros(1, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as problem:  # a torch built without CUDA asserts
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}; `dspa-bench doctor` says what is here") from None


def check_weights(ref: ModelRef, kind: Any = None, *, new_head: bool = False) -> None:
    """Raise ValueError for a folder or file that is no model or has no weights; a public name is not looked up.

    With ``kind``, the class of transformers that is going to be loaded, the weights are looked at too (`check_model`).
    """
    if ref.path is None:
        return
    source = ref.source  # a folder without config.json has the more helpful message
    if is_gguf(source):
        check_gguf(source)
    elif not [*Path(ref.path).glob("*.safetensors")]:
        pickled = [file.name for file in sorted(Path(ref.path).glob("*.bin"))]
        only = "".join(f", only pickled {name}: save the model again with save_pretrained" for name in pickled[:1])
        raise ValueError(f"model folder {ref.path!r} has no weights in safetensors{only}")
    if kind is not None:
        check_model(kind, source_of(ref), new_head=new_head)


def base_shape(ref: ModelRef) -> BaseShape:
    """Number of layers, width and type from the configuration alone, without loading weights."""
    whole = read_config(source_of(ref), revision=ref.revision)
    config = whole.get_text_config()
    return BaseShape(
        name=ref.path or str(ref.id),
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        model_type=config.model_type,
        public_id=ref.id,
        config=whole,
    )


def base_identity(ref: ModelRef) -> str:
    """What a base model is by content: the hash of a file or a folder's files, the commit a public name stands for."""
    if ref.path is not None:
        return content_hash(ref.path) if is_gguf(ref.path) else folder_hash(ref.path)
    assert ref.id is not None
    config = cached_file(ref.id, "config.json", revision=ref.revision)
    commit = extract_commit_hash(None if config is None else str(config), None)
    if commit is None:
        place = f"{ref.id!r} at revision {ref.revision!r}"
        raise ValueError(f"the hub names no commit for {place}; name a commit as `revision`")
    return commit
