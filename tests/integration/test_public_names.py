"""Models and SAEs by public name, through the same code path as folders: against a local copy of a hub cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import json
from dspa.sae import check_sae, load_sae
from harness.base_model import base_shape
from harness.model import AlignedModel
from harness.preferences import conversation
from harness.refs import ModelRef, SAERef

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
    from harness.preferences import conversation

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
