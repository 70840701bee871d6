"""Tiny random models, SAEs and triples, made on the spot: no network, no committed weights."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from harness.heap import settle

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = [f"w{i}" for i in range(40)]
D_MODEL, N_LAYERS, D_SAE = 32, 4, 48
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}sys {{ m['content'] }} end "
    "{% elif m['role'] == 'user' %}usr {{ m['content'] }} end {% else %}ast {{ m['content'] }} end {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ast {% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _settled():
    """accelerate collects garbage before each training, and modules are half a million objects to pass over."""
    settle()


def make_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<bos>", "<eos>", "<unk>", "sys", "usr", "ast", "end", *WORDS]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["end"],
    )
    fast.chat_template = TEMPLATE
    return fast


def make_model(family: str, **changes):
    """A random model of a family; ``changes`` are further entries of its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 8 + len(WORDS),
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family in ("gemma2", "gemma3"):
        sizes |= {"sliding_window": 16, "query_pre_attn_scalar": 8}
    if family == "gemma3":
        sizes |= {"layer_types": ["sliding_attention", "full_attention"] * (N_LAYERS // 2)}
    sizes |= changes
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gemma3_text" if family == "gemma3" else family, **sizes)
    )
    with torch.no_grad():  # random weights of the usual size give nearly flat logits; make tokens matter
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    return model.eval()


def make_sae(
    folder: Path,
    layer: int,
    seed: int,
    architecture: str = "jumprelu",
    d_in: int = D_MODEL,
    *,
    d_sae: int = D_SAE,
    **options,
) -> Path:
    """A folder written by SAELens; ``options`` are further entries of its configuration."""
    from sae_lens import SAE

    torch.manual_seed(seed)
    config = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post", "model_name": "tiny"},
    }
    if architecture == "topk":
        config["k"] = 8
    sae = SAE.from_dict(config | options)
    with torch.no_grad():
        sae.W_enc.normal_(0, 0.5)
        sae.W_dec.normal_(0, 0.3)
        sae.b_dec.normal_(0, 0.1)
        if architecture == "gated":
            sae.b_gate.normal_(-0.5, 0.2)
            sae.b_mag.normal_(-0.2, 0.4)
            sae.r_mag.normal_(0, 0.3)
        else:
            sae.b_enc.normal_(-0.5, 0.2)
        if architecture == "jumprelu":
            sae.threshold.fill_(0.3)
    sae.save_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """family -> model folder, and "input"/"output" -> SAE folder (layers 1 and 2)."""
    root = tmp_path_factory.mktemp("tiny")
    folders = {}
    for family in ("llama", "gemma2", "gemma3", "qwen3"):
        folder = root / family
        make_model(family).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        folders[family] = folder
    folders["input"] = make_sae(root / "sae_input", 1, seed=1)
    folders["output"] = make_sae(root / "sae_output", 2, seed=2)
    return folders


@pytest.fixture(scope="session")
def tiny_base(tiny_folders):
    """family -> the base as an AlignedModel."""
    from harness.data.refs import ModelRef
    from harness.model.aligned import AlignedModel

    cache = {}

    def load(family: str = "gemma2"):
        if family not in cache:
            cache[family] = AlignedModel.from_base(ModelRef(path=str(tiny_folders[family])))
        return cache[family]

    return load


@pytest.fixture(scope="session")
def sae_refs(tiny_folders):
    """(input, output) SAERefs that fit the tiny models."""
    from harness.data.refs import SAERef

    return SAERef(path=str(tiny_folders["input"])), SAERef(path=str(tiny_folders["output"]))


@pytest.fixture(scope="session")
def filtered_refs(sae_refs, tmp_path_factory):
    """norm multiple -> ``sae_refs`` with such a norm filter."""
    from harness.data.refs import SAERef

    def refs(multiple: float) -> tuple[SAERef, ...]:
        folders = [tmp_path_factory.mktemp("filtered") / "sae" for _ in sae_refs]
        for ref, folder in zip(sae_refs, folders, strict=True):
            shutil.copytree(ref.path, folder)
            config = json.loads((folder / "cfg.json").read_text())
            config["metadata"]["norm_filter"] = multiple
            (folder / "cfg.json").write_text(json.dumps(config))
        return tuple(SAERef(path=str(folder)) for folder in folders)

    return refs


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program with arguments; (exit code, stdout, stderr)."""
    from harness.cli.app import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dspa-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def triples_file(tmp_path, triples):
    """`triples` as a JSONL file."""
    rows = [{"prompt": list(t.prompt), "chosen": t.chosen, "rejected": t.rejected} for t in triples]
    file = tmp_path / "triples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def triples():
    """24 triples of random words; chosen answers favour the first words, rejected ones the last."""
    import random

    from harness.data.triples import Triple, conversation

    draw = random.Random(3)

    def text(words: list[str], low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    return [Triple(conversation(text(WORDS, 3, 9)), text(WORDS[:25], 4, 8), text(WORDS[15:], 4, 8)) for _ in range(24)]


@pytest.fixture
def full_disk():
    """`with full_disk(n):` no file can grow beyond n bytes: what writes more gets an OSError, as on a full disk."""
    import resource

    @contextmanager
    def limited(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data, $DSPA_BENCH_DATA; tests that need it skip, and say so, when it is absent."""
    given = os.environ.get("DSPA_BENCH_DATA")
    if not given:
        pytest.skip("needs real data: set DSPA_BENCH_DATA to the folder that has what tests/real_data.yaml lists")
    if not (Path(given) / "models" / "stories260K" / "config.json").is_file():
        pytest.skip(f"needs real data: {given} (DSPA_BENCH_DATA) has no models/stories260K, see tests/real_data.yaml")
    return Path(given)
