"""Folders of others - models, adapters, SAEs, artifacts, runs - hold data: nothing in them is ever executed."""

import builtins
import contextlib
import json
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2.exceptions import SecurityError

from baselines.given import Adapter, Checkpoint
from dspa.saes.sae import SAERef, load_sae
from harness.data.refs import ModelRef
from harness.data.triples import conversation
from harness.experiment.check import check_base
from harness.judging.reward_model import AnswerFormat
from harness.model.aligned import AlignedModel
from harness.model.base import base_shape
from harness.model.pretrained import read_config, read_tokenizer
from reports.render import write_report
from tests.conftest import make_sae
from tests.unit.synthetic_run import write_run


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The folder that evil code makes; every question on the terminal is answered with y."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    return tmp_path / "evil-was-here"


def with_code(folder: Path, to: Path, mark: Path, *, model_type: str | None) -> Path:
    """A copy of a model folder whose configuration and tokenizer name classes of its own."""
    shutil.copytree(folder, to)
    (to / "evil.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\n"
        "from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel\n"
        "from transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
    )
    config = json.loads((to / "config.json").read_text())
    names = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel")
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig"} | dict.fromkeys(names, "evil.EvilModel")
    if model_type is not None:
        config["model_type"] = model_type
    (to / "config.json").write_text(json.dumps(config))
    settings = json.loads((to / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    settings["tokenizer_class"] = "EvilTokenizer" if model_type else settings.get("tokenizer_class")
    (to / "tokenizer_config.json").write_text(json.dumps(settings))
    return to


@pytest.mark.parametrize("model_type", [None, "frob"], ids=["a known kind", "a kind of its own"])
def test_code_in_a_model_folder_is_not_run_whoever_says_yes(tiny_folders, tmp_path, mark, model_type):
    folder = with_code(tiny_folders["llama"], tmp_path / "m", mark, model_type=model_type)
    ref = ModelRef(path=str(folder))
    base = base_shape(ModelRef(path=str(tiny_folders["llama"])))
    for use in (
        lambda: read_config(str(folder)),
        lambda: read_tokenizer(str(folder)),
        lambda: check_base(ref),
        lambda: AlignedModel.from_base(ref),
        lambda: AnswerFormat.of(ref),
        lambda: Checkpoint(weights={"path": str(folder)}, flops="unknown").check(base),
    ):
        with contextlib.suppress(ValueError):  # which is what each of them may say of such a folder
            use()
    assert not mark.exists()


def test_pickled_weights_and_adapters_run_nothing(tiny_folders, tmp_path, mark):
    folder = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights"):
        AlignedModel.from_base(ModelRef(path=str(folder)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    config["auto_mapping"] = {"base_model_class": "Evil", "parent_library": "evil"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"a": Evil(mark)}, adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        Adapter(adapter={"path": str(adapter)}, flops="unknown").check(
            base_shape(ModelRef(path=str(tiny_folders["llama"])))
        )
    assert not mark.exists()


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "sae_weights.pt", "params.npz", "ae.pt"])
def test_a_pickle_in_an_saes_folder_runs_nothing(tmp_path, mark, name):
    folder = make_sae(tmp_path / "sae", 1, 0)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    if name.endswith("npz"):
        np.savez(folder / name, W_enc=np.array([Evil(mark)], dtype=object))
    else:
        torch.save({"W_enc": Evil(mark)}, folder / name)
    with pytest.raises(ValueError, match="SAE"):
        load_sae(SAERef(path=str(folder)))
    assert not mark.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.mkdir(%r) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ %r }}",
        "{%% for m in messages %%}{%% set _ = messages.append(m) %%}{{ %r }}{%% endfor %%}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(tiny_base, mark, template, monkeypatch):
    base = tiny_base()
    monkeypatch.setattr(base.tokenizer, "chat_template", template % str(mark))
    with pytest.raises(SecurityError):
        base.chat.prompt_ids(conversation("w1"))
    assert not mark.exists()


def test_a_run_folder_that_is_read_runs_nothing(tmp_path, mark, monkeypatch):
    folder = write_run(tmp_path / "run")
    code = f"import os\nos.mkdir({str(mark)!r})\n"
    for name in ("evil.py", "conftest.py", "sitecustomize.py", "reports.py", "tasks.py"):
        (folder / name).write_text(code)
    (folder / "suite.yaml").write_text("plugins: [evil]\nname: !!python/object/apply:os.mkdir [x]\n")
    cell = next(path for path in sorted((folder / "cells").iterdir()) if path.is_dir())
    (cell / "optimizer.pt").write_bytes(pickle.dumps(Evil(mark)))
    monkeypatch.chdir(folder)
    write_report(folder, out=tmp_path / "report")
    assert not mark.exists()


def test_the_tests_themselves_know_evil_when_it_is_run(mark):
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.is_dir() and time.time() >= mark.stat().st_mtime - 60
