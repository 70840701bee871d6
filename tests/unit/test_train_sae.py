"""SAEs for a model that has none: text, activations, training and its resumption, on planted and tiny data."""

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import cosine_similarity

from dspa.saes import activations as kept_activations
from dspa.saes import new as new_module
from dspa.saes.activations import ActivationFiles, Batches, counted_tokens, forward_batches
from dspa.saes.corpus import read_corpus
from dspa.saes.new import KINDS, NewSAE, finish, sample_of, save_new, start, train_new
from dspa.saes.plan import Plan, TrainSettings
from dspa.saes.sae import load_sae, read_sae
from dspa.saes.train_sae import silent_on
from harness.data.refs import SAERef
from harness.data.triples import Triple, conversation
from tests.conftest import D_MODEL, WORDS, make_sae

D_IN, PLANTED, ACTIVE = 24, 36, 3


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def on_disk(folder, data, layer=1, dtype=torch.float32):
    """``data`` as if it had been captured after ``layer``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"layer_{layer}.bin").write_bytes(data.to(dtype).view(torch.uint8).numpy().tobytes())
    return ActivationFiles(folder, (layer,), len(data), data.shape[1], dtype)


def planted(n=4096, seed=0):
    """(directions, tokens): each token is a sum of `ACTIVE` of the directions with positive weights, off the origin."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(PLANTED, D_IN, generator=draw), dim=-1)
    chosen = torch.rand(n, PLANTED, generator=draw).topk(ACTIVE).indices
    weights = torch.zeros(n, PLANTED).scatter(1, chosen, 1 + torch.rand(n, ACTIVE, generator=draw))
    return directions, 40 * (weights @ directions) + 25 * torch.randn(D_IN, generator=draw)


def trained(tmp_path, kind="batchtopk", *, steps=300, dtype="float32", lr=5e-3, watch=lambda _: None):
    directions, data = planted()
    files = on_disk(tmp_path / "activations", data)
    batches = Batches(files, 1, torch.arange(len(data)), 256, seed=0)
    settings = NewSAE(kind, 48, ACTIVE, steps, 256, lr, seed=0)
    trainer, seen = train_new(settings, batches, tmp_path / "state", watch=watch)
    finish(trainer, settings, sample_of(batches))
    before = trainer.sae.decode(trainer.sae.encode(data)).detach()
    sae = save_new(trainer.sae, tmp_path / "sae", tmp_path / "scratch", dtype=dtype, metadata={"norm_filter": 7.5})
    return directions, data, sae, before, seen


def l0(sae, data):
    return float((sae.sae.encode(data) > 0).sum(1).float().mean())


def explained(sae, data):
    error = (sae.sae.decode(sae.sae.encode(data)) - data).pow(2).sum()
    return float(1 - error / (data - data.mean(0)).pow(2).sum())


def test_batchtopk_finds_the_planted_directions(tmp_path):
    directions, data, sae, _, seen = trained(tmp_path, steps=600)
    found = cosine_similarity(directions[:, None], sae.sae.W_dec[None], dim=-1).amax(1)
    assert found.mean() > 0.93, "mean max cosine"
    assert explained(sae, data) > 0.9
    assert seen[-1].explained_variance > 0.9 and seen[-1].step == 600
    assert seen[0].explained_variance < seen[-1].explained_variance


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_to_the_l0_asked_for_and_folding_keeps_what_it_computes(tmp_path, kind):
    directions, data, sae, before, _ = trained(tmp_path, kind)
    assert sae.sae.cfg.architecture() == {"batchtopk": "jumprelu"}.get(kind, kind)
    assert sae.layer == 1 and sae.norm_multiple == 7.5 and sae.d_sae == 48
    assert l0(sae, data) == pytest.approx(ACTIVE, rel=0.05)
    found = cosine_similarity(directions[:, None], sae.sae.W_dec[None], dim=-1).amax(1)
    assert found.mean() > 0.85, "mean max cosine"
    assert explained(sae, data) > (0.3 if kind == "standard" else 0.8), "an L1 penalty shrinks what it finds"
    torch.testing.assert_close(sae.sae.W_dec.norm(dim=-1), torch.ones(48))
    if kind == "batchtopk":  # its batch takes the largest of all tokens, which the threshold only matches on the mean
        return
    torch.testing.assert_close(sae.sae.decode(sae.sae.encode(data)), before, rtol=1e-3, atol=1e-2)


def test_weights_saved_in_half_precision_are_read_in_full_and_nearly_the_same(tmp_path):
    _, data, full, _, _ = trained(tmp_path / "full", steps=150)
    _, _, half, _, _ = trained(tmp_path / "half", steps=150, dtype="float16")
    sizes = [(tmp_path / name / "sae" / "sae_weights.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.sae.W_enc.dtype == torch.float32
    assert json.loads((tmp_path / "half" / "sae" / "cfg.json").read_text())["dtype"] == "float16"
    assert explained(half, data) == pytest.approx(explained(full, data), abs=0.01)
    assert torch.equal(half.sae.W_dec, full.sae.W_dec.half().float())


class _Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_a_training_killed_at_any_step_ends_with_the_same_weights(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(new_module, "CHECKPOINT_EVERY", 7)

    def weights(name, kills):
        kills = list(kills)

        def watch(seen):
            if kills and seen.step >= kills[0]:
                kills.pop(0)
                raise _Killed

        for _ in range(len(kills)):
            with pytest.raises(_Killed):
                trained(tmp_path / name, kind, steps=60, watch=watch)
        *_, sae, _, seen = trained(tmp_path / name, kind, steps=60, watch=watch)
        return sae.sae.state_dict(), seen

    (whole, seen), (resumed, seen_resumed) = weights("whole", []), weights("resumed", [10, 20, 50])
    assert [one.step for one in seen_resumed] == [one.step for one in seen] == list(range(10, 61, 10))
    assert seen == seen_resumed
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_step_has_the_same_batch_whenever_it_is_asked_for(tmp_path):
    data = torch.arange(50.0)[:, None].repeat(1, 4)
    batches = Batches(on_disk(tmp_path, data), 1, torch.arange(0, 50, 2), 8, seed=3)
    every = batches.after(0)
    first = [next(every)[:, 0].tolist() for _ in range(9)]
    for step in range(9):
        assert next(batches.after(step))[:, 0].tolist() == first[step]
    one_epoch = [value for batch in first[:3] for value in batch]
    assert len(set(one_epoch)) == 24 and all(value % 2 == 0 for value in one_epoch)
    assert first[3:6] != first[:3]
    with pytest.raises(ValueError, match="less than one batch of 26"):
        Batches(batches.files, 1, batches.kept, 26, seed=3)


def test_one_pass_keeps_the_residuals_of_all_layers_and_ends_behind_the_deepest(tiny_base, tmp_path, triples_file):
    base, calls = tiny_base(), []
    corpus = read_corpus(base, [triples_file], 64)
    texts = [text for group in corpus.groups for text in group]
    batches = forward_batches(texts)
    total = sum(counted_tokens(base, text) for text in texts)
    files = ActivationFiles(tmp_path / "a", (0, 2), total, D_MODEL, torch.float32)
    handle = base.model.model.layers[3].register_forward_hook(lambda *_: calls.append(1))
    files.fill(base, batches)
    handle.remove()
    assert calls == []
    for layer in (0, 2):
        expected = []
        for text in (text for batch in batches for text in batch):
            hidden = base.model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states[layer + 1][0]
            own = [i for i in range(text.start, len(text.ids)) if text.ids[i] not in base.chat.special_ids]
            expected.append(hidden[own].detach())
        got = files.rows(layer, slice(0, total))
        torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(files.norms(layer), got.norm(dim=-1))


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_pass_cut_off_goes_on_after_the_last_mark(tiny_base, tmp_path, triples_file, monkeypatch, stop):
    base = tiny_base()
    monkeypatch.setattr(kept_activations, "FORWARD_TOKENS", 100)
    monkeypatch.setattr(kept_activations, "_MARK_EVERY", 2)
    corpus = read_corpus(base, [triples_file], 64)
    texts = [text for group in corpus.groups for text in group]
    batches, total = forward_batches(texts), sum(counted_tokens(base, text) for text in texts)
    assert len(batches) > 6
    whole, cut = (ActivationFiles(tmp_path / name, (1, 2), total, D_MODEL, torch.float32) for name in ("a", "b"))
    whole.fill(base, batches)

    def kill(done):
        if done == stop:
            raise _Killed

    with pytest.raises(_Killed):
        cut.fill(base, batches, kill)
    assert cut.batches_done == stop - stop % 2
    passed = []
    cut.fill(base, batches, passed.append)
    assert passed[0] == stop - stop % 2 + 1
    for layer in (1, 2):
        name = f"layer_{layer}.bin"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def ids_of(base, text):
    return tuple(base.tokenizer(text)["input_ids"])


def test_texts_of_every_form_are_read_as_they_are_described(tiny_base, tmp_path, triples):
    base = tiny_base()
    chat = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    paths = [
        write_lines(tmp_path / "t.jsonl", [{"prompt": "w1 w2", "chosen": "w3 w4", "rejected": "w5"}]),
        write_lines(tmp_path / "m.jsonl", [{"messages": chat}, {"messages": chat[:1]}]),
        write_lines(tmp_path / "d.jsonl", [{"text": " ".join(WORDS[:20])}]),
        tmp_path / "stories.txt",
        tmp_path / "whole.txt",
    ]
    paths[3].write_text("w1 w2 w3\n<|endoftext|>\nw4 w5\n<|endoftext|>\n")
    paths[4].write_text(" ".join(WORDS[:12]))
    corpus = read_corpus(base, paths, 8)
    kinds = [(source.kind, source.texts) for source in corpus.sources]
    assert kinds == [("triples", 2), ("conversations", 2), ("documents", 3), ("documents", 2), ("documents", 2)]
    first = corpus.groups[0]  # the triple, and the conversations with the same prompt
    prompt, chosen, rejected = base.triple_ids(Triple(conversation("w1 w2"), "w3 w4", "w5"))
    assert first[0].ids == (*prompt, *chosen) and first[0].start == 1
    assert first[1].ids == (*prompt, *rejected) and first[1].start == len(prompt)
    assert [text.ids for text in first[2:]] == [(*prompt, *base.chat.response_ids("w3")), tuple(prompt)]
    pieces = corpus.groups[1]
    assert [len(text.ids) for text in pieces] == [8, 8, 4] and sum((t.ids for t in pieces), ()) == ids_of(
        base, " ".join(WORDS[:20])
    )
    assert [[t.ids for t in group] for group in corpus.groups[2:4]] == [
        [ids_of(base, "w1 w2 w3")],
        [ids_of(base, "w4 w5")],
    ]
    assert [len(group) for group in corpus.groups[4:]] == [1, 1], "a file that is one document is split by pieces"
    assert all(text.start >= 1 for group in corpus.groups for text in group)


def test_texts_of_one_prompt_or_document_are_all_on_one_side(tiny_base, tmp_path):
    rows = [{"prompt": f"w{i % 8} w9", "chosen": f"w{i}", "rejected": "w0 w0"} for i in range(1, 33)]
    corpus = read_corpus(tiny_base(), [write_lines(tmp_path / "t.jsonl", rows)], 64)
    training, held_out = corpus.split(0.25, seed=1)
    assert len(corpus.groups) == 8 and (len(training), len(held_out)) == (48, 16)
    prompts = [{text.ids[:4] for text in part} for part in (training, held_out)]
    assert not prompts[0] & prompts[1]
    assert corpus.split(0.25, seed=1) == (training, held_out) != corpus.split(0.25, seed=2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x", r"files are .jsonl \(triples: prompt, chosen, rejected; conversations: messages"),
        ("a.jsonl", '{"words": "w1"}\n', r"a.jsonl:1: a line has keys words; allowed: triples"),
        ("a.jsonl", '{"text": "w1"}\n{"text": ""}\n', "a.jsonl:2: 'text' must be a non-empty string"),
        ("a.jsonl", '{"messages": []}\n', "a.jsonl:1: 'messages' must be a non-empty list"),
        ("a.jsonl", '{"messages": [{"role": "judge", "content": "w1"}]}\n', "allowed: system, user, assistant"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "w1"}]}\n', "a user turn before the first answer"),
        ("a.jsonl", '{"prompt": "w1", "chosen": "w2"}\n', "a.jsonl:1: missing key 'rejected'"),
        ("a.jsonl", json.dumps({"messages": [{"role": "user", "content": "w1 " * 300}]}), "the context of 256"),
    ],
)
def test_text_that_cannot_be_read_is_refused_with_its_place(tiny_base, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_corpus(tiny_base(), [tmp_path / name], 64)


def test_the_same_text_twice_is_refused(tiny_base, triples_file):
    with pytest.raises(ValueError, match="given twice"):
        read_corpus(tiny_base(), [triples_file, triples_file], 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "matching_pursuit"}, "allowed: batchtopk, topk, jumprelu, standard, gated"),
        ({"layers": ()}, "at least one"),
        ({"layers": (1, 1)}, "different layers"),
        ({"latents": 1}, "at least 2"),
        ({"k": 0}, "above 0"),
        ({"kind": "topk", "k": 2.5}, "a whole number"),
        ({"batch_size": 1}, "at least 2"),
        ({"tokens": 5}, "less than one batch of 1024"),
        ({"lr": 0.0}, "above 0"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"norm_filter": 0.5}, "above 1"),
        ({"save_dtype": "int8"}, "allowed: float32, float16"),
        ({"context": 2}, "at least 8"),
        ({"measure_tokens": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**({"layers": (1,)} | changes))


def test_a_plan_says_how_many_steps_the_text_makes(tiny_base, triples_file):
    base = tiny_base()
    corpus = read_corpus(base, [triples_file], 64)
    settings = TrainSettings((1, 2), batch_size=32, k=4, held_out=0.3, measure_tokens=40)
    plan = Plan.of(base, corpus, settings)
    training, held_out = corpus.split(0.3, 0)
    assert plan.tokens == sum(counted_tokens(base, text) for text in training)
    assert (plan.sae.steps, plan.sae.latents) == (plan.tokens // 32, 4 * D_MODEL)
    special = set(base.chat.special_ids)
    left_out = sum(sum(i in special for i in text.ids[text.start :]) + (text.start == 1) for text in training)
    assert plan.first_and_special == left_out
    assert 40 <= plan.held_out_tokens < 60 and set(plan.held_out) < set(held_out)
    fewer = Plan.of(base, corpus, dataclasses.replace(settings, tokens=64))
    assert fewer.sae.steps == 2 and 64 <= fewer.tokens < 90
    more = Plan.of(base, corpus, dataclasses.replace(settings, tokens=6400))
    assert more.sae.steps == 200 and more.tokens == plan.tokens
    with pytest.raises(ValueError, match=r"less than one batch of 9999; give more --text"):
        Plan.of(base, corpus, dataclasses.replace(settings, batch_size=9999))


def test_the_norm_filter_comes_with_the_sae(tmp_path):
    folder = make_sae(tmp_path / "sae", 1, seed=0, metadata={"hook_name": "blocks.1.hook_resid_post", "norm_filter": 4})
    ref = SAERef(path=str(folder))
    assert load_sae(ref).norm_multiple == 4.0
    assert load_sae(ref.model_copy(update={"norm_filter": 6.0})).norm_multiple == 6.0, "what is given counts"
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"]["norm_filter"] = "ten"
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its metadata has norm_filter 'ten'; it is a multiple of the median norm"):
        read_sae(ref)


def test_latents_are_dead_that_are_silent_on_the_last_training_tokens(tmp_path):
    data = torch.randn(64, D_MODEL, generator=torch.Generator().manual_seed(0))
    sae = load_sae(SAERef(path=str(make_sae(tmp_path / "sae", 1, seed=0))))
    batches = Batches(on_disk(tmp_path / "a", data), 1, torch.arange(64), 16, seed=0)
    sae.sae.threshold[:5] = 1e9
    tail = torch.cat([batches.files.rows(1, batches.order(0)[at : at + 16]) for at in (0, 16)])
    silent = set((~(sae.sae.encode(tail) > 0).any(0)).nonzero().flatten().tolist())
    assert silent_on(sae, batches, 2) == silent and set(range(5)) <= silent


def test_weights_begin_at_the_mean_and_scaled_and_leave_the_generator_alone(tmp_path):
    _, data = planted()
    batches = Batches(on_disk(tmp_path, data), 1, torch.arange(len(data)), 256, seed=0)
    settings = NewSAE("batchtopk", 48, ACTIVE, 10, 256, 1e-3, seed=0)
    before = torch.random.get_rng_state()
    first = start(settings, batches, 1, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again = start(settings, batches, 1, device="cpu")
    assert torch.equal(first.sae.W_dec, again.sae.W_dec)
    scale = first.activation_scaler.scaling_factor
    torch.testing.assert_close((data * scale).norm(dim=-1).mean(), torch.tensor(D_IN**0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(first.sae.b_dec.detach() / scale, data.mean(0), rtol=1e-3, atol=1e-2)
