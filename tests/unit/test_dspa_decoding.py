"""DSPA under every supported way of decoding, SAE architecture and weight change, against brute force."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dspa.saes.sae import load_sae
from harness.data.refs import ModelRef, SAERef
from harness.data.triples import Triple, conversation
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from tests.conftest import make_sae
from tests.reference import ReferenceDSPA
from tests.unit.test_dspa import PROMPTS, fit


def assert_decodes_as_the_reference(aligned, unsteered, n=10):
    reference = ReferenceDSPA(aligned)
    completions = aligned.generate(PROMPTS, max_new_tokens=n)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.token_ids == reference.greedy(aligned.prompt_ids(prompt), n)
    plain = unsteered.generate(PROMPTS, max_new_tokens=n)
    assert any(a.token_ids != b.token_ids for a, b in zip(completions, plain, strict=True)), "steering had no effect"


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
@pytest.mark.parametrize("scale", ["max", "own"])
def test_every_sae_architecture(tiny_base, triples, tmp_path, architecture, scale):
    refs = [SAERef(path=str(make_sae(tmp_path / str(layer), layer, layer, architecture))) for layer in (1, 2)]
    base = tiny_base("llama")
    assert_decodes_as_the_reference(fit(base, triples, refs, scale=scale), base)


def test_tokens_longer_than_the_norm_filter_allows_are_neither_counted_nor_edited(tiny_base, triples, sae_refs):
    base = tiny_base("llama")
    filtered = [SAERef(path=ref.path, norm_filter=1.05) for ref in sae_refs]
    aligned = fit(base, triples, filtered, alpha=3.0)
    assert all(limit > 0 for limit in aligned.intervention.params()["norm_limits"])
    assert_decodes_as_the_reference(aligned, base)
    unfiltered = fit(base, triples, sae_refs, alpha=3.0)
    assert aligned.fingerprint != unfiltered.fingerprint
    edits = []
    for model in (aligned, unfiltered):
        batches = model.score_batches([(base.prompt_ids(p), list(range(9, 40))) for p in PROMPTS])
        edits.append(model.intervention.figures([batch.tally for batch in batches])["edited_share"])
    assert edits[0] < edits[1]


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_prompts_longer_than_the_sliding_window(tiny_base, sae_refs, family):
    base = tiny_base(family)
    assert base.model.config.sliding_window == 16
    texts = [" ".join(f"w{(i * k) % 40}" for i in range(length)) for k, length in ((3, 36), (7, 15), (11, 2), (13, 28))]
    triples = [Triple(conversation(text), texts[1], texts[2 - i % 2]) for i, text in enumerate(texts)]
    aligned = fit(base, triples, sae_refs)
    reference, prompts = ReferenceDSPA(aligned), [aligned.prompt_ids(conversation(text)) for text in texts]
    for prompt, completion in zip(
        prompts, aligned.generate([t.prompt for t in triples], max_new_tokens=8), strict=True
    ):
        assert completion.token_ids == reference.greedy(prompt, 8)
    answer = list(range(9, 29))
    for prompt, (value, _) in zip(prompts, aligned.loglikelihood_tokens([(p, answer) for p in prompts]), strict=True):
        logits = reference.logits(prompt, answer)[len(prompt) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(float(logits.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-4)


def with_adapter(base):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    return base.derive(model=model.eval(), delta="adapter", method="lora")


def test_steering_on_top_of_an_adapter(tiny_base, triples, sae_refs, tmp_path):
    adapted = with_adapter(tiny_base("qwen3"))
    both = adapted.derive(intervention=fit(tiny_base("qwen3"), triples, sae_refs).intervention)
    assert_decodes_as_the_reference(both, adapted)
    both.save(tmp_path / "both")
    loaded = AlignedModel.load(tmp_path / "both")
    assert loaded.generate(PROMPTS, max_new_tokens=6) == both.generate(PROMPTS, max_new_tokens=6)


def test_beam_search_scores_are_those_of_steered_full_forwards(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("gemma2"), triples, sae_refs)
    reference = ReferenceDSPA(aligned)
    rows = [aligned.prompt_ids(p) for p in PROMPTS[:2]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    with aligned.steering():
        found = aligned.model.generate(
            ids,
            attention_mask=(ids != 0).long(),
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=6,
            length_penalty=0.0,
            pad_token_id=0,
            eos_token_id=list(aligned.chat.stop_ids),
            return_dict_in_generate=True,
            output_scores=True,
        )
    assert len({tuple(s) for s in found.sequences.tolist()}) > 3
    for index, (sequence, score) in enumerate(zip(found.sequences, found.sequences_scores, strict=True)):
        prompt, new = rows[index // 3], sequence[width:].tolist()
        end = next((i + 1 for i, token in enumerate(new) if token in aligned.chat.stop_ids), len(new))
        new = new[:end]
        logprobs = reference.logits(prompt, new)[len(prompt) - 1 : -1].log_softmax(-1)
        assert float(score) == pytest.approx(float(logprobs.gather(1, torch.tensor(new)[:, None]).sum()), abs=1e-3)


class NoWaiting(TorchDispatchMode):
    """Raises for operators that make the host wait for an accelerator."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.waiting), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scale", ["max", "own"])
def test_a_decode_step_on_an_accelerator_would_not_wait_for_the_device(tiny_base, triples, sae_refs, scale):
    aligned = fit(tiny_base("llama"), triples, sae_refs, scale=scale)
    ids = torch.tensor([aligned.prompt_ids(PROMPTS[0])])
    outcomes = []
    for lazy, mode in ((True, nullcontext()), (False, NoWaiting())):
        aligned.intervention._lazy = lazy
        with aligned.steering() as session, torch.no_grad():
            cache = aligned.model(input_ids=ids).past_key_values
            with mode:
                step = aligned.model(input_ids=torch.tensor([[9]]), past_key_values=cache).logits
            outcomes.append((step, session.steered_tokens))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[1][1].tolist() == [2]


def test_sixty_four_rows_at_once_answer_as_one_by_one(tiny_base, triples, sae_refs):
    aligned = fit(tiny_base("gemma3"), triples, sae_refs, mode="both", scale="own", alpha=0.5)
    prompts = [conversation(" ".join(f"w{(i * 7 + j) % 40}" for j in range(1 + i % 9))) for i in range(64)]
    together = aligned.generate(prompts, max_new_tokens=24, batch_size=64)
    assert any(c.finished for c in together) and not all(c.finished for c in together)
    for i in range(0, 64, 9):
        assert together[i].token_ids == aligned.generate([prompts[i]], max_new_tokens=24)[0].token_ids


def test_in_bfloat16_latents_and_delta_are_float32_and_the_delta_is_cast_back(tiny_folders, triples, sae_refs):
    base = AlignedModel.from_base(ModelRef(path=str(tiny_folders["gemma2"]), dtype="bfloat16"))
    aligned = fit(base, triples, sae_refs)
    prompt = aligned.prompt_ids(PROMPTS[0])
    ids, layer, seen = torch.tensor([prompt]), find_decoder(base.model).layers[2], []

    def forward():
        handle = layer.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
        try:
            return aligned.model(input_ids=ids).logits
        finally:
            handle.remove()

    with torch.no_grad():
        forward()
        with aligned.steering():
            assert forward().dtype == torch.bfloat16
    before, after = seen
    ablate, _ = ReferenceDSPA(aligned).sets(prompt)
    sae = load_sae(sae_refs[1]).sae
    f = sae.encode(before[-1].float())
    edited = f.clone()
    edited[ablate] = torch.where(f[ablate] > 0, (f[ablate] - 1.5 * f.max()).clamp(min=0), f[ablate])
    expected = (before[-1] + ((edited - f) @ sae.W_dec).bfloat16()).float()
    assert not torch.equal(after[-1], before[-1])
    torch.testing.assert_close(after[-1].float(), expected, atol=0.02, rtol=0.01)
    assert torch.equal(after[:-1], before[:-1])
    completions = aligned.generate(PROMPTS, max_new_tokens=8)
    assert all(c.steered_tokens == len(c.token_ids) for c in completions)


def test_alpha_zero_is_bit_identical_in_bfloat16_also_while_decoding(tiny_folders, triples, sae_refs):
    base = AlignedModel.from_base(ModelRef(path=str(tiny_folders["gemma2"]), dtype="bfloat16"))
    aligned = fit(base, triples, sae_refs, alpha=0.0, mode="both", positions="all")
    assert [c.token_ids for c in aligned.generate(PROMPTS, max_new_tokens=12)] == [
        c.token_ids for c in base.generate(PROMPTS, max_new_tokens=12)
    ]
