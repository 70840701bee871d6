"""Folders of models, tokenizers and SAEs that are not what they should be: configurations, weights, templates."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.attack.ground import Case, Change

NAN, INF = float("nan"), float("inf")
CONFIG: tuple[tuple[str, Any], ...] = (
    ("num_hidden_layers", 3),
    ("num_hidden_layers", 5),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", -1),
    ("num_hidden_layers", "x"),
    ("num_hidden_layers", None),
    ("num_hidden_layers", 10**12),
    ("hidden_size", 16),
    ("hidden_size", "32"),
    ("hidden_size", 0),
    ("hidden_size", 10**9),
    ("hidden_size", None),
    ("num_attention_heads", 3),
    ("num_attention_heads", 0),
    ("num_key_value_heads", 3),
    ("head_dim", "x"),
    ("vocab_size", 10),
    ("vocab_size", -1),
    ("vocab_size", "many"),
    ("max_position_embeddings", None),
    ("max_position_embeddings", 0),
    ("max_position_embeddings", 8),
    ("max_position_embeddings", "x"),
    ("max_position_embeddings", [256]),
    ("model_type", "bert"),
    ("model_type", "nope"),
    ("model_type", None),
    ("model_type", 5),
    ("rope_parameters", "x"),
    ("rms_norm_eps", "x"),
    ("hidden_act", "nope"),
    ("intermediate_size", 65),
    ("tie_word_embeddings", "x"),
)
DOCUMENTS = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "no keys": b"{}",
    "truncated": b'{"model_type": "ll',
    "not UTF-8": b"\xff\xfe{}",
    "100,000 brackets": b"[" * 100_000,
    "100,000 keys deep": b'{"a":' * 100_000,
    "5000 digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "NaN": b'{"hidden_size": NaN}',
    "half a character": b'{"model_type": "\\ud800"}',
}
TOKENIZER = {
    "no vocabulary": b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}}',
    "unknown kind": b'{"version": "1.0", "model": {"type": "Nope"}}',
}
TEMPLATES = {
    "does not parse": "{% for m in messages %}",
    "raises": "{{ raise_exception('no') }}",
    "divides by zero": "{{ 1 // 0 }}",
    "names what is not there": "{{ nothing.at.all }}",
    "writes nothing": "",
    "leaves the messages out": "hello",
    "recurses": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "is a list": ["x"],
    "is a number": 5,
}
WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor], str], object]] = {
    "missing tensor": lambda t, n: t.pop(n),
    "renamed tensor": lambda t, n: t.update({f"x.{n}": t.pop(n)}),
    "all renamed": lambda t, n: [t.update({f"x.{name}": t.pop(name)}) for name in list(t)],
    "column less": lambda t, n: t.update({n: t[n][..., :-1].contiguous()}),
    "a dimension more": lambda t, n: t.update({n: t[n][None].contiguous()}),
    "a number alone": lambda t, n: t.update({n: torch.tensor(1.0)}),
    "NaN": lambda t, n: t[n].view(-1)[5:6].fill_(NAN),
    "inf": lambda t, n: t[n].view(-1)[5:6].fill_(INF),
    "-inf": lambda t, n: t[n].view(-1)[5:6].fill_(-INF),
    "nothing": lambda t, n: t.clear(),
}
FILES = {
    "empty": lambda content: b"",
    "8 bytes": lambda content: content[:8],
    "half": lambda content: content[: len(content) // 2],
    "a byte less": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "garbage": lambda content: bytes(range(256)) * 64,
    "a web page": lambda content: b"<!DOCTYPE html><html>404</html>",
    "a Git LFS pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "a header of 2^60 bytes": lambda content: (2**60).to_bytes(8, "little") + content[8:],
    "a header that is no JSON": lambda content: content[:8] + b"x" + content[9:],
}
MODEL, SAE_WEIGHTS = "model/model.safetensors", "sae_early/sae_weights.safetensors"
SAE: tuple[tuple[str, Any], ...] = (
    ("d_in", 33),
    ("d_in", "x"),
    ("d_in", 32.7),
    ("d_in", None),
    ("d_in", INF),
    ("d_in", -32),
    ("d_sae", 49),
    ("d_sae", 0),
    ("d_sae", INF),
    ("d_sae", [48]),
    ("architecture", "nope"),
    ("architecture", ["jumprelu"]),
    ("architecture", None),
    ("metadata", []),
    ("metadata", "x"),
    ("metadata", None),
    ("metadata", {}),
    ("metadata", {"hook_name": 5}),
    ("metadata", {"hook_name": "blocks.1.mlp"}),
    ("metadata", {"hook_name": "blocks.9.hook_resid_post"}),
    ("metadata", {"hook_name": "blocks.99999999999999999999.hook_resid_post"}),
    ("metadata", {"hook_name": "blocks.1.hook_resid_post", "model_name": 5}),
    ("metadata", {"hook_name": "blocks.1.hook_resid_post", "model_name": "gemma-2-2b"}),
    ("metadata", {"hook_name": "blocks.1.hook_resid_post", "norm_filter": 0}),
    ("metadata", {"hook_name": "blocks.1.hook_resid_post", "norm_filter": "x"}),
    ("apply_b_dec_to_input", "x"),
    ("normalize_activations", "nope"),
    ("reshape_activations", "nope"),
)


def with_key(file: str, key: str, value: Any) -> Change:
    """A JSON document with another value at a key."""

    def change(here: Path) -> None:
        found = json.loads((here / file).read_text("utf-8"))
        (here / file).write_text(json.dumps(found | {key: value}), "utf-8")

    return change


def without_key(file: str, key: str) -> Change:
    """A JSON document without a key."""

    def change(here: Path) -> None:
        found = json.loads((here / file).read_text("utf-8"))
        del found[key]
        (here / file).write_text(json.dumps(found), "utf-8")

    return change


def with_content(file: str, content: bytes | Callable[[bytes], bytes]) -> Change:
    """A file with another content."""

    def change(here: Path) -> None:
        path = here / file
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))

    return change


def without(*files: str) -> Change:
    """Files that are gone."""

    def change(here: Path) -> None:
        for file in files:
            (here / file).unlink()

    return change


def with_tensors(file: str, change: Callable[[dict[str, torch.Tensor], str], object], name: str) -> Change:
    """Weights that went through ``change``, which is given them and the ``name`` of one."""

    def changed(here: Path) -> None:
        tensors = load_file(here / file)
        change(tensors, name)
        save_file(tensors, here / file, metadata={"format": "pt"})

    return changed


def _template(text: Any) -> Change:
    def change(here: Path) -> None:
        (here / "model" / "chat_template.jinja").unlink(missing_ok=True)
        with_key("model/tokenizer_config.json", "chat_template", text)(here)

    return change


def _pickled(here: Path) -> None:
    """Weights that run a command when they are unpickled by somebody careless."""

    class Evil:
        def __reduce__(self) -> tuple:
            return exec, (f"open({str(here / 'ran')!r}, 'w').close()",)

    (here / MODEL).unlink()
    torch.save({"a": Evil()}, here / "model" / "pytorch_model.bin")


def _pickled_rightly(here: Path) -> None:
    tensors = load_file(here / MODEL)
    (here / MODEL).unlink()
    torch.save(tensors, here / "model" / "pytorch_model.bin")


def _sharded(here: Path) -> None:
    """An index that names a file which is not there."""
    tensors = load_file(here / MODEL)
    shutil.move(here / MODEL, here / "model" / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00002-of-00002.safetensors")}
    (here / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


def _integers(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int8)


def cases() -> Iterator[Case]:
    """All of them."""
    for key, value in CONFIG:
        yield Case("config.json of models", f"{key}: {value!r}", with_key("model/config.json", key, value), said="base")
    quantised = with_key("model/config.json", "quantization_config", {"quant_method": "nope"})
    yield Case("config.json of models", "quantised", quantised, said="are quantised (nope)")
    for name, content in DOCUMENTS.items():
        yield Case("config.json of models", name, with_content("model/config.json", content), said="base")
        yield Case("tokenizers", f"tokenizer.json: {name}", with_content("model/tokenizer.json", content), said="base")
    for name, content in TOKENIZER.items():
        yield Case("tokenizers", name, with_content("model/tokenizer.json", content), said="base")
    yield Case("tokenizers", "no files", without("model/tokenizer.json", "model/tokenizer_config.json"), said="base")
    for name, text in TEMPLATES.items():
        yield Case("chat templates", name, _template(text), said="base")
    for name, cut in FILES.items():
        yield Case("weights of models", name, with_content(MODEL, cut), said="model")
        yield Case("weights of SAEs", name, with_content(SAE_WEIGHTS, cut), said="sae_early")
    for name, change in WEIGHTS.items():
        tensor = "model.layers.1.mlp.down_proj.weight"
        yield Case("weights of models", name, with_tensors(MODEL, change, tensor), said="model")
        yield Case("weights of SAEs", name, with_tensors(SAE_WEIGHTS, change, "W_dec"), said="sae_early")
    yield Case("weights of models", "gone", without(MODEL), said="model")
    yield Case("weights of models", "a pickle that runs code", _pickled, said="model")
    yield Case("weights of models", "a pickle", _pickled_rightly, said="safetensors")
    yield Case("weights of models", "a shard is missing", _sharded, said="model")
    yield Case("weights of SAEs", "integers", with_tensors(SAE_WEIGHTS, _integers, "W_dec"), said="sae_early")
    yield Case("weights of SAEs", "gone", without(SAE_WEIGHTS), said="sae_early")
    for key, value in SAE:
        change = with_key("sae_early/cfg.json", key, value)
        yield Case("cfg.json of SAEs", f"{key}: {value!r}", change, said="sae_early")
    for key in ("d_in", "d_sae", "metadata"):
        yield Case("cfg.json of SAEs", f"no {key}", without_key("sae_early/cfg.json", key), said="sae_early")
    for name, content in DOCUMENTS.items():
        yield Case("cfg.json of SAEs", name, with_content("sae_early/cfg.json", content), said="sae_early")
    fine = {
        "unknown key in config.json": with_key("model/config.json", "colour", "blue"),
        "code that is not run": with_key("model/config.json", "auto_map", {"AutoConfig": "evil.Config"}),
        "a longer context": with_key("model/config.json", "max_position_embeddings", 512),
        "another activation": with_key("model/config.json", "hidden_act", "gelu"),
        "unknown key in cfg.json": with_key("sae_early/cfg.json", "colour", "blue"),
        "another dtype in cfg.json": with_key("sae_early/cfg.json", "dtype", "bfloat16"),
        "weights in bfloat16": with_tensors(MODEL, lambda t, n: t.update({n: t[n].bfloat16() for n in t}), ""),
        "no chat template": without("model/chat_template.jinja"),
    }
    for name, change in fine.items():
        yield Case("models in order", name, change, accepted=True)
