"""Models and SAEs by public name, through the same code path as folders: against a local copy of a hub cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dspa.saes.sae import check_sae, load_sae
from harness.data.refs import SAERef
from harness.method import BaseShape

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import json
from dspa.saes.sae import check_sae, load_sae
from harness.model.base import base_shape
from harness.model.aligned import AlignedModel
from harness.data.triples import conversation
from harness.data.refs import ModelRef, SAERef

ref = ModelRef(id="someone/tiny", revision="main")
model = AlignedModel.from_base(ref)
model.save("artifact")
sae = SAERef(release="someone/tiny-saes", id="layer_1")
print(json.dumps({
    "identity": model.base.identity,
    "revision": json.load(open("artifact/aligned.json"))["base"]["revision"],
    "sae": check_sae(sae, base_shape(ref)),
    "answer": model.generate([conversation("w1 w2")], max_new_tokens=5)[0].token_ids,
}))
"""

GIVEN = """
import json, sys
from baselines import Adapter, Checkpoint
from harness.data.refs import ModelRef
from harness.experiment.check import check_base
from harness.experiment.fitting import fit
from harness.model.aligned import AlignedModel

ref = ModelRef(path=sys.argv[1])
base, shape, found = AlignedModel.from_base(ref), check_base(ref), {}
for method in (
    Checkpoint(weights={"id": "someone/tiny"}, flops="unknown"),
    Adapter(adapter={"id": "someone/tiny-lora", "revision": "main"}, flops=1e9),
):
    method.check(shape)
    aligned = fit(method, base, None, 0)
    found[method.name] = [aligned.params["content"], aligned.fingerprint, list(method.notes(shape))]
print(json.dumps(found))
"""


def publish(hub: Path, name: str, files: dict[str, Path]) -> None:
    """Lay out ``files`` as huggingface_hub keeps a downloaded repository."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path, source in files.items():
        target = repository / "snapshots" / COMMIT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@pytest.fixture
def hub(tmp_path, tiny_folders):
    publish(tmp_path / "hub", "someone/tiny", {p.name: p for p in tiny_folders["llama"].iterdir()})
    publish(tmp_path / "hub", "someone/tiny-saes", {f"layer_1/{p.name}": p for p in tiny_folders["input"].iterdir()})
    return tmp_path


def test_a_public_name_gives_the_same_model_as_its_folder_and_is_identified_by_its_commit(hub, tiny_base):
    from harness.data.triples import conversation

    environment = os.environ | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env=environment, cwd=hub, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["identity"] == COMMIT
    assert found["revision"] == COMMIT, "an artifact must not depend on where a branch points tomorrow"
    assert found["sae"] == [1, 48]
    expected = tiny_base("llama").generate([conversation("w1 w2")], max_new_tokens=5)[0].token_ids
    assert tuple(found["answer"]) == expected


def test_checkpoints_and_adapters_by_public_name_are_those_in_a_folder(hub, tiny_folders, tiny_base, triples):
    from baselines import DPO
    from harness.compute import Meter

    base = tiny_base("llama")
    made = DPO(tuning="lora").fit(base, triples[:2], meter=Meter(base.model, sample_profile=False), seed=0)
    made.save(hub / "artifact")
    publish(hub / "hub", "someone/tiny-lora", {p.name: p for p in (hub / "artifact" / "adapter").iterdir()})
    environment = os.environ | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", GIVEN, str(tiny_folders["llama"])]
    done = subprocess.run(command, env=environment, cwd=hub, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["adapter"] == [COMMIT, made.fingerprint, []]
    assert found["checkpoint"][0] == COMMIT


@pytest.fixture
def in_process_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def write(folder: Path, name: str, weights: dict, config: dict | None = None) -> dict[str, Path]:
    folder.mkdir()
    torch.save(weights, folder / name)
    files = {name: folder / name}
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
        files["config.json"] = folder / "config.json"
    return files


def test_a_qwen3_sae_of_adamkarvonen_keeps_its_threshold_and_gets_its_norm_filter(tmp_path, in_process_hub):
    d_model, d_sae, threshold = 32, 64, 0.7
    torch.manual_seed(0)
    weights = {  # as dictionary_learning writes a BatchTopK SAE
        "encoder.weight": torch.randn(d_sae, d_model) * 0.3,
        "encoder.bias": torch.randn(d_sae) * 0.1,
        "decoder.weight": torch.randn(d_model, d_sae) * 0.3,
        "b_dec": torch.randn(d_model) * 0.1,
        "k": torch.tensor(8),
        "threshold": torch.tensor(threshold),
    }
    trainer = {
        "dict_class": "BatchTopKSAE",
        "activation_dim": d_model,
        "dict_size": d_sae,
        "k": 8,
        "layer": 2,
        "lm_name": "Qwen/Qwen3-8B",
    }
    files = write(tmp_path / "made", "ae.pt", weights, {"trainer": trainer, "buffer": {"ctx_len": 128}})
    sae_id = "saes_Qwen_Qwen3-8B_batch_top_k/resid_post_layer_2/trainer_0"
    publish(in_process_hub, "adamkarvonen/qwen3-8b-saes", {f"{sae_id}/{name}": file for name, file in files.items()})

    ref = SAERef(release="adamkarvonen/qwen3-8b-saes", id=sae_id)
    sae = load_sae(ref)
    assert sae.sae.cfg.architecture() == "jumprelu"
    assert sae.norm_multiple == 10.0
    x = torch.randn(5, d_model)
    pre = (x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
    torch.testing.assert_close(sae.encode(x), pre * (pre > threshold), atol=1e-5, rtol=1e-5)
    rows = sae.encoder.gather(torch.arange(16).expand(5, -1))
    torch.testing.assert_close(rows["decoder"][0], weights["decoder.weight"].T[:16])
    selected, _ = sae.encoder.encode_selected(x[:, None], rows)
    torch.testing.assert_close(selected[:, 0], sae.encode(x)[:, :16], atol=1e-5, rtol=1e-5)

    assert check_sae(ref, BaseShape("Qwen/Qwen3-8B", 4, d_model, "qwen3", "Qwen/Qwen3-8B")) == (2, d_sae)
    with pytest.raises(ValueError, match=r"made for 'Qwen3-8B' \(family qwen3\), but base tiny is of type 'llama'"):
        check_sae(ref, BaseShape("tiny", 4, d_model, "llama"))


def test_a_damaged_checkpoint_of_a_release_is_refused_by_name(tmp_path, in_process_hub):
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": 8, "dict_size": 16, "layer": 2, "lm_name": "Qwen3-8B"}
    files = write(tmp_path / "made", "ae.pt", {}, {"trainer": trainer, "buffer": {"ctx_len": 128}})
    files["ae.pt"].write_bytes(files["ae.pt"].read_bytes()[:40])
    publish(in_process_hub, "adamkarvonen/qwen3-8b-saes", {f"x/{name}": file for name, file in files.items()})
    with pytest.raises(ValueError, match=r"SAE adamkarvonen/qwen3-8b-saes/x: its weights file is damaged"):
        load_sae(SAERef(release="adamkarvonen/qwen3-8b-saes", id="x"))


def test_a_topk_sae_of_qwen_scope_is_loaded_through_saelens(tmp_path, in_process_hub, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, d_model, d_sae, k = "qwen-scope-3-1.7b-base-w32k-l50", 32, 1024, 5
    # SAELens takes sizes from the repository's name: a small one, so that no gigabyte is written
    repository = f"Qwen/SAE-Res-Qwen3-1.7B-Base-W1K-L0_{k}"
    monkeypatch.setattr(get_pretrained_saes_directory()[release], "repo_id", repository)
    sizes = {"Qwen3-1.7B-Base": ("Qwen/Qwen3-1.7B-Base", d_model)}
    monkeypatch.setattr(pretrained_sae_loaders, "QWEN_SCOPE_MODEL_INFO", sizes)
    torch.manual_seed(0)
    weights = {
        "W_enc": torch.randn(d_sae, d_model),
        "W_dec": torch.randn(d_model, d_sae),
        "b_enc": torch.randn(d_sae),
        "b_dec": torch.randn(d_model),
    }
    publish(in_process_hub, repository, write(tmp_path / "made", "layer3.sae.pt", weights))

    ref = SAERef(release=release, id="layer3")
    x = torch.randn(4, d_model)
    values, indices = (x @ weights["W_enc"].T + weights["b_enc"]).topk(k)
    expected = torch.zeros(4, d_sae).scatter(-1, indices, values.relu())
    torch.testing.assert_close(load_sae(ref).encode(x), expected, atol=1e-5, rtol=1e-5)
    base = BaseShape("Qwen/Qwen3-1.7B", 28, d_model, "qwen3", "Qwen/Qwen3-1.7B")
    assert check_sae(ref, base) == (3, d_sae)
    assert load_sae(ref).norm_multiple is None
