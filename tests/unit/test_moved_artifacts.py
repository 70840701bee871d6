"""Artifacts name their base and their SAEs relative to themselves, and are told where these are when they moved."""

import json
import shutil

import pytest

from dspa.method import DSPA
from harness.compute import Meter
from harness.data.refs import ModelRef, SAERef
from harness.model.aligned import AlignedModel
from harness.references import references
from harness.run_folder.adoption import adopt
from harness.run_folder.cell import CellFolder, CellState
from tests.unit.trained import PROMPTS


@pytest.fixture
def home(tiny_folders, triples, tmp_path):
    """A folder with model, SAEs and an artifact of dspa on them."""
    home = tmp_path / "home"
    for source, name in (("gemma2", "model"), ("input", "early"), ("output", "late")):
        shutil.copytree(tiny_folders[source], home / name)
    base = AlignedModel.from_base(ModelRef(path=str(home / "model")))
    saes = {name: SAERef(path=str(home / place)) for name, place in (("input_sae", "early"), ("output_sae", "late"))}
    method = DSPA(**saes, gate="strict")
    method.fit(base, triples, meter=Meter(base.model, sample_profile=False), seed=0).save(home / "out" / "artifact")
    return home


def test_everything_may_move_together(home, tmp_path):
    artifact = AlignedModel.load(home / "out" / "artifact")
    said = artifact.generate(PROMPTS, max_new_tokens=4)
    moved = home.rename(tmp_path / "elsewhere")
    there = AlignedModel.load(moved / "out" / "artifact")
    assert there.fingerprint == artifact.fingerprint
    assert there.generate(PROMPTS, max_new_tokens=4) == said
    text = (moved / "out" / "artifact" / "aligned.json").read_text()
    assert str(tmp_path) not in text
    assert {ref["path"] for _, ref in references(json.loads(text))} == {"../../model", "../../early", "../../late"}
    assert there.params["input_sae"]["path"] == str(moved / "early")


def test_what_moved_alone_is_named(home, tmp_path):
    folder, model, late = home / "out" / "artifact", tmp_path / "model", tmp_path / "late"
    fingerprint = AlignedModel.load(folder).fingerprint
    (home / "model").rename(model)
    with pytest.raises(ValueError, match=r"its base is not at .*home/model'; say where it is: --base FOLDER"):
        AlignedModel.load(folder)
    (home / "late").rename(late)
    with pytest.raises(ValueError, match=r"SAE 'output_sae' is not at .*--sae output_sae=FOLDER"):
        AlignedModel.load(folder, base=model)
    found = AlignedModel.load(folder, base=str(model), saes={"output_sae": late})
    assert (found.fingerprint, found.params["output_sae"]["path"]) == (fingerprint, str(late))
    with pytest.raises(ValueError, match=r"no SAE is called 'sae'; its local SAEs are: input_sae, output_sae"):
        AlignedModel.load(folder, base=model, saes={"sae": late})
    with pytest.raises(ValueError, match="another SAE than it was made with: output_sae"):
        AlignedModel.load(folder, base=model, saes={"output_sae": home / "early"})


def test_an_artifact_of_before_with_absolute_paths_is_read(home):
    folder = home / "out" / "artifact"
    fingerprint, file = AlignedModel.load(folder).fingerprint, folder / "aligned.json"
    old = file.read_text().replace("../..", str(home))
    old = json.dumps({key: value for key, value in json.loads(old).items() if key != "saes"})
    file.write_text(old)
    assert AlignedModel.load(folder).fingerprint == fingerprint


def test_a_cell_that_another_run_takes_over_still_finds_them(home, tmp_path):
    cell = CellFolder(home / "out")
    cell.finish(CellState(status="done", error=None))
    taken = CellFolder(tmp_path / "other" / "cells" / "mine")
    taken.path.parent.mkdir(parents=True)
    adopt(taken, cell, "there")
    assert AlignedModel.load(taken.artifact).fingerprint == AlignedModel.load(cell.artifact).fingerprint


def test_generate_finds_what_moved(home, tmp_path, call):
    (home / "model").rename(tmp_path / "model")
    (home / "late").rename(tmp_path / "late")
    arguments = ["generate", home / "out" / "artifact", "--prompt", "w1 w2", "--max-new-tokens", 3]
    where = ["--base", tmp_path / "model", "--sae", f"output_sae={tmp_path / 'late'}"]
    code, out, _ = call(*arguments, *where)
    assert (code, bool(out.strip())) == (0, True)
    code, _, err = call(*arguments, *where[:2], "--sae", "output_sae")
    assert (code, "write NAME=FOLDER" in err) == (2, True)
