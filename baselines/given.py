"""checkpoint and adapter: what somebody else aligned, with the cost that is declared for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open

from baselines.training import sharing_copy
from harness.compute import Meter
from harness.compute.bill import Declared
from harness.data.refs import WeightsRef
from harness.data.triples import Triple
from harness.files import folder_hash, load_json
from harness.method import BaseShape, MethodConfig, register_method
from harness.model.aligned import AlignedModel
from harness.model.artifact import name_base
from harness.model.pretrained import read_config, read_model, read_tokenizer
from harness.quiet import hiding_deprecations

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

Shapes = Mapping[str, tuple[int, ...]]
_FLOPS = Field(description="what aligning it took, in FLOPs, as its makers say; or unknown")


class Given(MethodConfig):
    """Base of the competitors that are made elsewhere: nothing is fitted here, whatever the budget.

    ``flops`` is what the report shows as their cost, marked as declared; "unknown" is shown as unknown and never as 0.
    """

    uses_triples: ClassVar[bool] = False
    own_network: ClassVar[bool] = True
    flops: Annotated[Annotated[float, Field(gt=0)] | Literal["unknown"], _FLOPS]

    def declared(self, meter: Meter) -> None:
        """Put the declared cost on the bill."""
        meter.declared = Declared(flops=None if self.flops == "unknown" else self.flops)

    def located(self, field: str, ref: WeightsRef, file: str) -> dict[str, Any]:
        """The artifact's params: where ``ref``, which has a ``file``, is and what it holds: the commit, or the hash of
        its files."""
        content = folder_hash(ref.path) if ref.path is not None else _commit(ref, file)
        return self.model_dump(mode="json") | {field: ref.located().model_dump(), "content": content}


@register_method("checkpoint")
class Checkpoint(Given):
    """All weights of a model that was aligned elsewhere: a folder in Hugging Face format, or a Hugging Face id.

    Its architecture, sizes and vocabulary must be the base's; it is asked in the base's chat format and evaluated in
    the base's dtype. The artifact holds a copy of the weights.
    """

    weights: Annotated[WeightsRef, Field(description="folder in Hugging Face format, or Hugging Face id")]

    def check(self, base: BaseShape) -> None:
        """Sizes and vocabulary must be the base's and, where the files are in a folder, so must every tensor's shape.

        Of a Hugging Face id the configuration and the tokenizer are read; its tensors are compared when it is loaded.
        """
        source, what = self.weights.source, f"checkpoint {self.weights}"
        config = read_config(source, revision=self.weights.revision)
        theirs, own = config.get_text_config(), _config(base).get_text_config()
        for name in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size"):
            found, needed = getattr(theirs, name, None), getattr(own, name, None)
            if found != needed:
                raise ValueError(
                    f"{what}: {name} is {found}, but base {base.name} has {needed}; give a checkpoint that was made "
                    "from this base, or the base that it was made from"
                )
        _check_vocabulary(what, self.weights, base.vocabulary)
        if self.weights.path is not None:
            _check_shapes(what, shapes_in(Path(self.weights.path)), _shapes(_skeleton(_config(base))), tied=_tied(own))

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Load them; nothing is computed."""
        from transformers import AutoModelForCausalLM

        self.declared(meter)
        ref = self.weights
        model: Any = read_model(AutoModelForCausalLM, ref.source, revision=ref.revision, dtype=base.model.dtype)
        _check_shapes(f"checkpoint {ref}", _shapes(model), _shapes(base.model))
        model.generation_config = base.model.generation_config
        model = model.to(base.device).eval()
        return base.derive(
            method=self.name, params=self.located("weights", ref, "config.json"), model=model, delta="weights"
        )


@register_method("adapter")
class Adapter(Given):
    """A PEFT adapter that was trained elsewhere, on this base: a folder with adapter_config.json, or a Hugging Face id.

    The artifact holds a copy of the adapter.
    """

    adapter: Annotated[WeightsRef, Field(description="folder with adapter_config.json, or Hugging Face id")]

    def check(self, base: BaseShape) -> None:
        """Its target modules must be in the base, and every tensor of it must fit there."""
        from peft import get_peft_model, get_peft_model_state_dict

        what, folder = f"adapter {self.adapter}", self._folder()
        config = self._config(folder)
        config.base_model_name_or_path = None  # PEFT would warn of another name; `notes` says it
        try:
            with torch.device("meta"), hiding_deprecations():
                model: Any = get_peft_model(_skeleton(_config(base)), config)
        except ValueError as problem:
            raise ValueError(f"{what}: does not fit base {base.name}: {problem}") from None
        fitting = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        _check_shapes(what, shapes_in(folder, "adapter_model"), fitting)

    def notes(self, base: BaseShape) -> Sequence[str]:
        """A base that the adapter names and that is called otherwise than this one: it may be the same in a folder."""
        named = self._config(self._folder()).base_model_name_or_path
        if not named or Path(named).name == Path(base.public_id or base.name).name:
            return ()
        return [f"adapter {self.adapter} says that it was trained on {named!r}; here it is put on {base.name}"]

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Put it around the base; nothing is computed."""
        from peft import PeftModel

        self.declared(meter)
        with hiding_deprecations():
            model = PeftModel.from_pretrained(sharing_copy(base.model), str(self._folder())).eval()
        name_base(model, base.base)
        return base.derive(
            method=self.name,
            params=self.located("adapter", self.adapter, "adapter_config.json"),
            model=model,
            delta="adapter",
        )

    def _folder(self) -> Path:
        ref = self.adapter
        if ref.path is not None:
            return Path(ref.path)
        from huggingface_hub import snapshot_download

        try:
            kept = ["adapter_config.json", "adapter_model.safetensors"]
            return Path(snapshot_download(str(ref.id), revision=ref.revision, allow_patterns=kept))
        except OSError as problem:  # an unknown name, no network
            raise ValueError(f"adapter {ref}: cannot be had: {problem}") from None

    def _config(self, folder: Path) -> Any:
        from peft import PeftConfig

        if not (folder / "adapter_config.json").is_file():
            raise ValueError(f"adapter {self.adapter}: has no adapter_config.json; give an adapter in PEFT's format")
        try:
            return PeftConfig.from_pretrained(str(folder))
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise ValueError(f"adapter {self.adapter}: adapter_config.json cannot be read: {problem}") from None


def shapes_in(folder: Path, stem: str = "model") -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a folder's safetensors files, without loading them.

    Raises ValueError where there are none (weights in another format are not read: they can hold code), where one that
    the index names is missing, and where one or the index is damaged.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        found = load_json(index, "index of the weights")
        places = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ValueError(f"{index}: 'weight_map' must say in which file each tensor is; get it again")
        names = set(places.values())
    else:
        names = {f"{stem}.safetensors"}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(names):
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{folder} has no {name}; give weights as safetensors")
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except SafetensorError as problem:
            raise ValueError(f"{file} is damaged ({problem}); get it again") from None
    return shapes


def _check_shapes(what: str, found: Shapes, needed: Shapes, *, tied: bool = False) -> None:
    """Raise ValueError for tensors that are missing, too many, or of other shapes; ``tied``: the LM head may miss."""
    optional = {"lm_head.weight"} if tied else set()
    both = [name for name in found if name in needed]
    wrong = [f"{name} is {found[name]}, not {needed[name]}" for name in both if found[name] != needed[name]]
    wrong += [f"{name} is missing" for name in needed.keys() - found.keys() - optional]
    wrong += [f"{name} has no place in the base" for name in found.keys() - needed.keys() - optional]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{what}: does not fit the base: {'; '.join(sorted(wrong)[:3])}{more}")


def _check_vocabulary(what: str, ref: WeightsRef, vocabulary: Mapping[str, int] | None) -> None:
    """Raise ValueError where a token of the checkpoint's tokenizer has another number in the base's."""
    if vocabulary is None:
        return
    try:
        theirs = read_tokenizer(ref.source, revision=ref.revision).get_vocab()
    except ValueError:  # none is kept beside the weights: the base's is used anyway
        return
    other = [token for token, number in theirs.items() if vocabulary.get(token, number) != number]
    if other:
        token = min(other, key=theirs.__getitem__)
        raise ValueError(
            f"{what}: its tokenizer numbers {len(other)} tokens otherwise than the base's, first {token!r} "
            f"({theirs[token]}, in the base {vocabulary[token]}); it was made from another base"
        )


def _config(base: BaseShape) -> "PreTrainedConfig":
    if base.config is None:
        raise ValueError(f"base {base.name}: its configuration is not known, so nothing can be compared with it")
    return base.config


def _skeleton(config: "PreTrainedConfig") -> "nn.Module":
    """The model without its weights: names and shapes alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _shapes(model: "nn.Module") -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _tied(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _commit(ref: WeightsRef, file: str) -> str:
    """The commit that a Hugging Face id stands for, by ``file`` of it in the cache."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    commit = extract_commit_hash(str(cached_file(str(ref.id), file, revision=ref.revision)), None)
    if commit is None:
        raise ValueError(f"the hub names no commit for {ref} at revision {ref.revision!r}; name a commit as `revision`")
    return commit
