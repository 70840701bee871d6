"""`dspa-bench train-sae` as a user runs it: what it prints and writes, killed anywhere, refused."""

import json

import pytest
import torch
from filelock import FileLock
from torch.nn.functional import cross_entropy

from dspa.method import DSPA
from dspa.saes import new as new_module
from dspa.saes.activations import ActivationFiles, counted_tokens
from dspa.saes.corpus import read_corpus
from dspa.saes.sae import load_sae
from harness.compute import Meter
from harness.data.refs import SAERef
from tests.conftest import N_LAYERS
from tests.unit.test_train_sae import explained, l0


@pytest.fixture
def command(tiny_folders, tmp_path, triples_file, call):
    """Runs `dspa-bench train-sae`; gives exit code and everything printed."""
    given = {
        "--base": str(tiny_folders["llama"]),
        "--text": str(triples_file),
        "--layer": ("1", "2"),
        "--out": str(tmp_path / "saes"),
        "--batch-size": "64",
        "--latents": "48",
        "--k": "6",
        "--held-out": "0.3",
        "--tokens": "640",
    }

    def run(*flags, **changes):
        options = given | {"--" + key.replace("_", "-"): value for key, value in changes.items()}
        words = list(flags)
        for key, value in options.items():
            for one in value if isinstance(value, tuple) else (value,):
                words += [key, one]
        code, out, err = call("train-sae", *words)
        return code, out + err

    return run


def brute_quality(base, sae, texts, limit):
    """(tokens, L0, explained variance, loss, spliced loss, zero loss), text by text."""
    xs, losses, count = [], torch.zeros(3), 0
    for text in texts:
        ids = torch.tensor([text.ids])
        x = base.model(ids, output_hidden_states=True).hidden_states[sae.layer + 1][0].detach()
        own = [
            i
            for i in range(max(1, text.start), len(text.ids))
            if text.ids[i] not in base.chat.special_ids and x[i].norm() <= limit
        ]
        predicting = [i for i in own if i + 1 < len(text.ids)]
        rebuilt = sae.sae.decode(sae.sae.encode(x[own]))
        for index, value in enumerate((None, rebuilt, torch.zeros_like(rebuilt))):

            def put(_module, _args, output, value=value, own=own):
                if value is not None:
                    (output[0] if isinstance(output, tuple) else output)[0, own] = value

            handle = base.model.model.layers[sae.layer].register_forward_hook(put)
            with torch.no_grad():
                logits = base.model(ids).logits[0]
            handle.remove()
            losses[index] += cross_entropy(logits[predicting], ids[0][[i + 1 for i in predicting]], reduction="sum")
        count += len(predicting)
        xs.append(x[own])
    x = torch.cat(xs)
    return len(x), l0(sae, x), explained(sae, x), *(losses / count).tolist()


def test_the_command_trains_both_layers_and_its_report_is_what_brute_force_finds(command, tmp_path, tiny_base, triples):
    code, shown = command(save_dtype="float16", norm_filter="1.2")
    assert code == 0, shown
    for word in ("batchtopk: 48 latents, 6 active, for layers 1, 2", "an estimate", "dead latents", "loss recovered"):
        assert word in shown, shown
    assert sorted(path.name for path in tmp_path.glob("saes*")) == ["saes"]
    base = tiny_base("llama")
    corpus = read_corpus(base, [tmp_path / "triples.jsonl"], 256)
    training, held_out = corpus.split(0.3, 0)
    for layer in (1, 2):
        folder = tmp_path / "saes" / f"layer_{layer}"
        assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "report.json", "sae_weights.safetensors"]
        report = json.loads((folder / "report.json").read_text())
        sae = load_sae(SAERef(path=str(folder)))
        assert (sae.layer, sae.norm_multiple) == (layer, 1.2)
        held, limit = report["held_out"], report["left_out"]["norm_limit"]
        tokens, *figures = brute_quality(base, sae, held_out, limit)
        assert held["tokens"] == tokens < sum(counted_tokens(base, text) for text in held_out)
        got = [held[name] for name in ("l0", "explained_variance", "loss", "loss_sae", "loss_zero")]
        assert got == pytest.approx(figures, rel=1e-3, abs=1e-4)
        norms = []
        for text in training:
            x = base.model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states[layer + 1][0].detach()
            own = [i for i in range(text.start, len(text.ids)) if text.ids[i] not in base.chat.special_ids]
            norms.append(x[own].norm(dim=-1))
        norms = torch.cat(norms)
        # No more texts are passed than the tokens asked for take, so the median is that of a part of them.
        assert limit == pytest.approx(1.2 * float(norms.median()), rel=0.05)
        assert 0 < report["left_out"]["share"] < 0.5
        assert report["base"]["identity"] == base.base.identity and report["settings"]["latents"] == 48
        assert report["command"].startswith("dspa-bench train-sae --base") and len(report["text"][0]["sha256"]) == 64
        assert report["dead"]["latents"] <= held["silent"]
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        assert metadata["norm_filter"] == 1.2 and metadata["l0"] == held["l0"] and metadata["model_name"] == "llama"
    code, shown = command()
    assert code == 2 and "exists already" in shown
    method = DSPA(
        input_sae=SAERef(path=str(tmp_path / "saes" / "layer_1")),
        output_sae=SAERef(path=str(tmp_path / "saes" / "layer_2")),
        k_prompt=4, k_diff=4,
    )  # fmt: skip
    fitted = method.fit(base, triples[:8], meter=Meter(), seed=0)
    assert all(limit is not None for limit in fitted.intervention.settings.norm_limits)


def test_the_command_killed_in_every_part_goes_on_to_the_same_saes(command, tmp_path, monkeypatch):
    from dspa.saes import train_sae as command_module

    code, shown = command(out=str(tmp_path / "whole"))
    assert code == 0, shown
    monkeypatch.setattr(new_module, "CHECKPOINT_EVERY", 3)
    fill, quality, step = ActivationFiles.fill, command_module.measure_quality, new_module.Seen.of

    def killed(*_args, **_more):
        raise KeyboardInterrupt

    out = str(tmp_path / "cut")
    for patch in (
        (ActivationFiles, "fill", lambda self, base, batches, tell: fill(self, base, batches[:1], killed)),
        (new_module.Seen, "of", killed),
        (command_module, "measure_quality", killed),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            assert command(out=out)[0] != 0
        assert not (tmp_path / "cut").exists() and (tmp_path / "cut.partial").is_dir()
    assert (fill, quality, step) == (ActivationFiles.fill, command_module.measure_quality, new_module.Seen.of)
    code, shown = command(out=out, lr="1e-3")
    assert code == 2 and "unfinished training of something else (lr: 0.0006 there, 0.001 asked for)" in shown
    code, shown = command(out=out)
    assert code == 0 and "going on from" in shown, shown
    for layer in (1, 2):
        left, right = (tmp_path / name / f"layer_{layer}" / "sae_weights.safetensors" for name in ("whole", "cut"))
        assert left.read_bytes() == right.read_bytes()
    assert not (tmp_path / "cut.partial").exists()


def test_two_processes_do_not_write_the_same_folder(command, tmp_path):
    (tmp_path / "saes.partial").mkdir()
    with FileLock(tmp_path / "saes.partial" / "lock"):
        code, shown = command()
    assert code == 2 and "another process is at work" in shown
    assert not (tmp_path / "saes").exists()


def test_a_dry_run_says_what_it_takes_and_makes_nothing(command, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, shown = command("--dry-run")
    assert code == 0 and "10 steps of 64 tokens for each layer" in shown and "GB of memory" in shown, shown
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_refuses_bad_input_before_any_work(command, tmp_path):
    for changes, message in (
        ({"layer": str(N_LAYERS)}, "whose layers are 0..3"),
        ({"k": "49"}, "--k 49 is more than the 48 latents"),
        ({"kind": "dense"}, "allowed: batchtopk, topk, jumprelu, standard, gated"),
        ({"base": "/nowhere"}, "'/nowhere' does not exist"),
        ({"text": "/nowhere.txt"}, "'/nowhere.txt' does not exist"),
        ({"dtype": "int4"}, "allowed: float32, bfloat16"),
        ({"batch_size": "640", "text": str(tmp_path / "short.txt")}, "less than one batch of 640"),
    ):
        (tmp_path / "short.txt").write_text("w1 w2 w3\n<|endoftext|>\nw4 w5 w6\n")
        code, shown = command(**changes)
        assert code == 2 and message in shown, shown
    assert not list(tmp_path.glob("saes*"))
