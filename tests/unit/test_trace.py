"""Per-token traces of steered answers, against what was edited while they were generated."""

from dataclasses import replace

import pytest
import torch

from baselines.caa import CAA
from baselines.static_sae import StaticSAE
from harness.compute import Meter
from harness.model.generation import generate_batches
from harness.model.trace import Recorder, marked, pieces, trace_answer
from tests.unit.test_dspa import PROMPTS, fit


def made(base, triples, refs, kind):
    if kind in ("dspa", "last_turn", "both"):
        options = {"dspa": {}, "last_turn": {"condition": "last_turn"}, "both": {"mode": "both", "scale": "own"}}
        return fit(base, triples, refs, **options[kind])
    method = CAA(layer=2) if kind == "caa" else StaticSAE(sae=refs[1], k_diff=8, active_only=kind == "token_active")
    return method.fit(base, triples, meter=Meter(base.model), seed=0)


@pytest.mark.parametrize("kind", ["dspa", "last_turn", "both", "static", "token_active", "caa"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trace_is_what_was_edited_while_the_answer_was_generated(tiny_base, triples, sae_refs, kind, temperature):
    model = made(tiny_base("llama"), triples, sae_refs, kind)
    edited = 0
    for prompt in PROMPTS:
        ids = model.prompt_ids(prompt)
        recorder = Recorder(model.intervention)
        runtime = replace(model.runtime, intervention=recorder.intervention)
        (batch,) = generate_batches(runtime, [ids], [temperature], 12, seed=0, batch_size=1)
        (completion,) = batch.completions
        happened = recorder.trace(model.tokenizer, completion.token_ids)
        traced = model.trace(prompt, completion)
        assert traced.token_ids == completion.token_ids and traced.latents == happened.latents
        torch.testing.assert_close(traced.change, happened.change, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(traced.before, happened.before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(traced.size, happened.size, rtol=1e-4, atol=1e-5)
        assert torch.equal(traced.change != 0, happened.change != 0)
        edited += int((traced.size > 0).sum())
        if kind != "caa":
            assert torch.equal(traced.size > 0, (traced.change != 0).any(1)), "an edit is of latents, or there is none"
            counted = [len(traced.edits(token)) for token in range(len(traced.tokens))]
            assert sum(counted) == len(traced.frame())
        else:
            assert traced.latents == () and traced.change.shape == (len(completion.token_ids), 0)
    assert edited > 0


@pytest.mark.parametrize("kind", ["dspa", "both", "token_active", "caa"])
def test_the_parts_of_an_answer_that_were_edited_are_those_of_its_trace(tiny_base, triples, sae_refs, kind):
    model, some = made(tiny_base("llama"), triples, sae_refs, kind), 0
    for batch in model.generate_batches(PROMPTS, max_new_tokens=12, batch_size=4):
        for row, completion in zip(batch.rows, batch.completions, strict=True):
            trace = model.trace(PROMPTS[row], completion)
            special = set(model.tokenizer.all_special_ids)
            said = [i for i, token in enumerate(completion.token_ids) if token not in special]
            words = " ".join(completion.text[start:end] for start, end in completion.edited).split()
            assert words == [trace.tokens[i].strip() for i in said if trace.size[i] > 0]
            some += len(words)
    assert some > 0


def test_marked_parts_are_of_the_stripped_text_and_neighbours_are_one():
    parts = (" ", " a", "b", "", " c", "d ", " ")
    assert marked(parts, [True] * 7) == ((0, 5),)
    assert marked(parts, [True, True, False, True, True, False, True]) == ((0, 1), (3, 4))
    assert marked(parts, [False] * 7) == marked((), ()) == ()


def test_the_tally_counts_the_edits_that_the_trace_shows(tiny_base, triples, sae_refs):
    model = made(tiny_base("llama"), triples, sae_refs, "dspa")
    (batch,) = model.generate_batches(PROMPTS[:1], max_new_tokens=12)
    trace = model.trace(PROMPTS[0], batch.completions[0])
    counted: dict[int, int] = {}
    for latent in trace.frame()["latent"]:
        counted[latent] = counted.get(latent, 0) + 1
    assert counted == dict(batch.tally["edits"]) and counted
    assert int((trace.size > 0).sum()) == sum(batch.tally["changed"])


def test_an_edit_is_told_by_its_latent_activation_and_signed_change_strongest_first(tiny_base, triples, sae_refs):
    model = made(tiny_base("llama"), triples, sae_refs, "both")
    trace = model.trace(PROMPTS[0], "w3 w9 w1 w4 w5")
    assert trace.tokens == ("w3", " w9", " w1", " w4", " w5") and len(trace.size) == 5
    found = [trace.edits(token) for token in range(5)]
    assert any(found)
    for edits in found:
        sizes = [abs(change) for _, _, change in edits]
        assert sizes == sorted(sizes, reverse=True) and 0 not in sizes
        for latent, before, change in edits:
            assert latent in trace.latents and before > 0 and before + change >= 0
    assert list(trace.frame().columns) == ["position", "token", "latent", "before", "change"]
    assert "5 tokens" in repr(trace)


def test_snippets_show_where_an_edited_latent_fires_in_the_triples(tiny_base, triples, sae_refs):
    model = made(tiny_base("llama"), triples, sae_refs, "dspa")
    latents = sorted({latent for edit in (model.trace(p, "w1 w2 w3 w4") for p in PROMPTS) for latent in edit.latents})
    found = model.intervention.snippets(model, triples, latents, 3)
    assert set(found) == set(latents) and any(found.values())
    for snippets in found.values():
        strengths = [snippet["activation"] for snippet in snippets]
        assert len(snippets) <= 3 and strengths == sorted(strengths, reverse=True)
        assert all("[[" in s["text"] and s["kind"] in ("prompt", "chosen", "rejected") for s in snippets)


def test_what_cannot_be_traced_is_refused(tiny_base, triples, sae_refs):
    base = tiny_base("llama")
    with pytest.raises(ValueError, match="nothing steers this model"):
        base.trace("w1", "w2")
    model = made(base, triples, sae_refs, "dspa")
    with pytest.raises(ValueError, match="needs a prompt and an answer"):
        model.trace("w1", [])
    with pytest.raises(ValueError, match="exceed the context of 256"):
        trace_answer(model.runtime, [9] * 200, [9] * 100)
    assert model.generate("w1", max_new_tokens=2), "a refused trace leaves no hooks behind"


def utf8(ids: list[int]) -> str:
    """Ids that are bytes, decoded."""
    return bytes(ids).decode(errors="replace")


def test_the_pieces_of_an_answer_join_to_its_text_where_a_character_has_several_tokens():
    text = "Zoë 🦊!"
    found = pieces(utf8, list(text.encode()))
    assert "".join(found) == text and "" in found
    assert "".join(pieces(utf8, list(text.encode())[:-2])) == text[:-2] + "�"
