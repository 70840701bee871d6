"""The committed prompts, samples and triples of the forms belong to their generator."""

import filecmp
import json
import os
from pathlib import Path

import pytest

from dspa.saes.sae import load_sae
from harness.data.external import data_folder
from harness.data.refs import ModelRef, SAERef
from harness.data.triples import contaminated, load_triples
from tasks.formats.build import SAMPLED, made_with, read_samples, summary, write_assets
from tasks.formats.prompts import ASSETS, all_prompts, of_part, read_prompts
from tasks.formats.samples import batches, sample
from tasks.formats.verifiable import MAX_NATS
from tasks.sandbox.build import one_thread

PROMPTS = all_prompts()
MODEL_VARIABLE = "DSPA_BENCH_SMOLLM2"


@pytest.fixture(scope="module")
def manifest():
    return json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture
def real_model(manifest):
    """The GGUF file the assets were made with; skips, with what is missing, where it or its kind of CPU is not here."""
    file = Path(os.environ.get(MODEL_VARIABLE) or data_folder() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    if not file.is_file():
        pytest.skip(f"needs {file}: `dspa-bench data fetch smollm2`, or set {MODEL_VARIABLE} to the GGUF file")
    pytest.importorskip("gguf", reason="needs the package gguf")
    if {k: manifest["made_with"][k] for k in ("torch", "cpu_capability")} != {
        k: made_with()[k] for k in ("torch", "cpu_capability")
    }:
        pytest.skip(f"samples are the same bit for bit only where they were made: {manifest['made_with']}")
    return ModelRef(path=str(file), dtype=manifest["base"]["dtype"])


def test_the_committed_prompts_are_the_generators():
    assert read_prompts(ASSETS / "prompts.jsonl") == list(PROMPTS)


def test_all_files_follow_from_the_committed_samples(tmp_path, manifest):
    samples, own = read_samples(ASSETS)
    write_assets(tmp_path, PROMPTS, samples, own)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) == 7
    differing = [str(path) for path in made if not filecmp.cmp(tmp_path / path, ASSETS / path, shallow=False)]
    assert differing == [], "run `dspa-bench formats build` again, or make the assets from the samples"


def test_the_manifest_states_what_the_files_have(manifest):
    found = summary(ASSETS, PROMPTS, *read_samples(ASSETS))
    assert {key: manifest[key] for key in found} == json.loads(json.dumps(found))
    assert manifest["surprise"]["p99"] == pytest.approx(MAX_NATS, abs=0.005)


def test_there_are_enough_triples_and_their_length_gives_little_away(manifest):
    figures = manifest["triples"]["all"]
    assert figures["triples"] >= 315, "a budget of 250 and a fifth of the prompts to validate on"
    assert abs(figures["longer_is_chosen"] - 0.5) < 0.15
    assert set(figures["rejected_forms"]) == {"steps", "sentence", "sides", "bullets", "letter", "quoted"}
    assert manifest["triples_heldout"]["all"]["triples"] >= 50


def test_no_evaluation_prompt_is_a_turn_of_a_training_triple(manifest):
    others = [p.text for p in PROMPTS if p.part != "triples"]
    assert contaminated(load_triples(ASSETS / "triples.jsonl"), others) == []


def test_a_batch_is_sampled_again_bit_for_bit(real_model):
    from harness.model.aligned import AlignedModel

    committed, _ = read_samples(ASSETS)
    batch = batches(of_part(PROMPTS, SAMPLED[1]), SAMPLED[1])[-1]
    with one_thread():
        again = sample(AlignedModel.from_base(real_model), batch, seed=0)
    assert {one.id: one for one in again} == {p.id: committed[p.id] for p in batch}


@pytest.mark.parametrize("layer", [8, 22])
def test_the_committed_saes_are_of_this_model_and_carry_their_figures(manifest, layer):
    folder = ASSETS / f"sae_{layer}"
    sae, report = load_sae(SAERef(path=str(folder))), json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (sae.layer, sae.d_sae, sae.norm_multiple) == (layer, 2304, 10)
    assert report["base"]["identity"] == manifest["base"]["content"]
    assert " /" not in report["command"], "no path of one machine"
    figures = report["held_out"]
    assert figures["l0"] == pytest.approx(32, abs=3)
    assert figures["explained_variance"] > 0.7
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
