"""CAA, and what it shares with RepE (baselines/direction.py), against one full forward after another."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from baselines import CAA
from baselines.direction import response_differences
from harness.compute import Meter, count_flops
from harness.data.refs import ModelRef
from harness.data.triples import Triple, conversation
from harness.method import BaseShape
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder, residual_of, with_residual
from tests.conftest import N_LAYERS
from tests.reference import hooked

PROMPTS = [conversation(text) for text in ("w1 w2 w3", "w30", "w7 w8 w9 w10 w11 w12 w13 w5 w5", "w20 w21")]
FAMILIES = ["llama", "gemma2", "gemma3", "qwen3"]


def fit(base: AlignedModel, triples, meter: Meter | None = None, **params) -> AlignedModel:
    options = {"layer": 2, "scale": 3.0, "batch_size": 5}
    return CAA(**(options | params)).fit(base, triples, meter=meter or Meter(base.model), seed=0)


def differences(base, triples, *, layer=2, tokens="mean", batch_size=5) -> torch.Tensor:
    meter = Meter(sample_profile=False)
    with meter.stage("features"):
        return response_differences(base, triples, layer=layer, tokens=tokens, meter=meter, batch_size=batch_size)


@torch.no_grad()
def brute_difference(base, triple: Triple, layer: int, tokens: str = "mean") -> torch.Tensor:
    """Each answer behind its prompt in a forward of its own, without a cache."""
    prompt, *answers = base.triple_ids(triple)
    states = []
    for answer in answers:
        seen = {}
        with hooked(find_decoder(base.model).layers[layer], lambda _m, _a, out, seen=seen: seen.update(h=out)):
            base.model(input_ids=torch.tensor([prompt + answer]))
        kept = [len(prompt) + i for i, token in enumerate(answer) if token not in base.chat.special_ids]
        residual = residual_of(seen["h"])[0]
        states.append(residual[kept].mean(0) if tokens == "mean" else residual[kept[-1]])
    return states[0] - states[1]


class ReferenceSteering:
    """``scale * vector`` added at one layer, one row at a time, everything recomputed at every token."""

    def __init__(self, aligned: AlignedModel, vector: torch.Tensor, *, everywhere: bool = False) -> None:
        settings = aligned.params
        self.model, self.chat, self.everywhere = aligned.model, aligned.chat, everywhere
        self.layer: nn.Module = find_decoder(aligned.model).layers[settings["layer"]]
        self.step = settings["scale"] * vector

    @torch.no_grad()
    def logits(self, prompt: list[int], continuation: list[int]) -> torch.Tensor:
        ids = prompt + continuation
        first = 0 if self.everywhere else len(prompt) - 1

        def hook(_module, _args, out):
            residual = residual_of(out).clone()
            for position in range(first, len(ids)):
                if ids[position] not in self.chat.special_ids:
                    residual[0, position] += self.step
            return with_residual(out, residual)

        with hooked(self.layer, hook):
            return self.model(input_ids=torch.tensor([ids])).logits[0]

    def greedy(self, prompt: list[int], n: int) -> tuple[int, ...]:
        new: list[int] = []
        while len(new) < n:
            new.append(int(self.logits(prompt, new)[-1].argmax()))
            if new[-1] in self.chat.stop_ids:
                break
        return tuple(new)


def assert_decodes_and_scores_as(reference: ReferenceSteering, aligned: AlignedModel, base: AlignedModel) -> None:
    completions = aligned.generate(PROMPTS, max_new_tokens=12)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.token_ids == reference.greedy(aligned.prompt_ids(prompt), 12)
    plain = base.generate(PROMPTS, max_new_tokens=12)
    assert any(a.token_ids != b.token_ids for a, b in zip(completions, plain, strict=True)), "steering had no effect"
    requests = [(aligned.prompt_ids(p), y) for p in PROMPTS for y in ([9, 10, 11], [12])]
    for (context, answer), (value, _) in zip(requests, aligned.loglikelihood_tokens(requests), strict=True):
        logprobs = reference.logits(context, answer)[len(context) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(float(logprobs.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", ["mean", "last"])
def test_differences_equal_full_forwards_of_each_text_alone(tiny_base, triples, family, tokens):
    base = tiny_base(family)
    ours = differences(base, triples[:12], tokens=tokens)
    expected = torch.stack([brute_difference(base, t, 2, tokens) for t in triples[:12]])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("tokens", ["mean", "last"])
def test_special_tokens_inside_an_answer_do_not_count(tiny_base, tokens):
    base, triple = tiny_base("llama"), Triple(conversation("w1 w2"), "w3 <pad> w4 <eos>", "<bos> w5")
    ours = differences(base, [triple], tokens=tokens)[0]
    torch.testing.assert_close(ours, brute_difference(base, triple, 2, tokens), atol=1e-4, rtol=1e-5)


def test_differences_depend_neither_on_batch_size_nor_on_the_other_triples(tiny_base, triples):
    base = tiny_base("gemma2")
    alone, together = differences(base, triples, batch_size=1), differences(base, triples, batch_size=24)
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(differences(base, triples[::-1])[-1], alone[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_the_vector_is_the_mean_difference_at_its_layer(tiny_base, triples, layer):
    base = tiny_base("qwen3")
    expected = torch.stack([brute_difference(base, t, layer) for t in triples[:8]]).mean(0)
    vector = fit(base, triples[:8], layer=layer).intervention.tensors()["vector"]
    torch.testing.assert_close(vector, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("family", "positions"), [*((f, "generation") for f in FAMILIES), ("gemma2", "all")])
def test_cached_batched_decoding_equals_full_reforwards_of_one_row(tiny_base, triples, family, positions):
    base = tiny_base(family)
    aligned = fit(base, triples[:8], positions=positions)
    vector = torch.stack([brute_difference(base, t, 2) for t in triples[:8]]).mean(0)
    assert_decodes_and_scores_as(ReferenceSteering(aligned, vector, everywhere=positions == "all"), aligned, base)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scale_zero_is_bit_identical(tiny_folders, triples, dtype):
    base = AlignedModel.from_base(ModelRef(path=str(tiny_folders["gemma2"]), dtype=dtype))
    aligned = fit(base, triples, scale=0.0, positions="all")
    ids = torch.tensor([base.prompt_ids(PROMPTS[0])])
    with aligned.steering(), torch.no_grad():
        steered = aligned.model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(steered, base.model(input_ids=ids).logits)
    one, other = (m.generate(PROMPTS, max_new_tokens=12) for m in (aligned, base))
    assert [c.token_ids for c in one] == [c.token_ids for c in other]


def test_only_steered_tokens_change_and_special_ones_never(tiny_base, triples):
    aligned = fit(tiny_base("llama"), triples, scale=2.0)
    residual, steered = torch.randn(2, 3, 32), torch.tensor([[True, False, True], [False, False, False]])
    delta = aligned.intervention.delta(2, residual, {}, steered)
    step = 2.0 * aligned.intervention.tensors()["vector"]
    assert torch.equal(delta[steered], step.expand(2, -1)) and not delta[~steered].any()
    everywhere, seen = fit(tiny_base("llama"), triples, positions="all"), []
    layer = find_decoder(everywhere.model).layers[2]
    for session in (nullcontext(), everywhere.steering()):
        with torch.no_grad(), session, hooked(layer, lambda _m, _a, out: seen.append(residual_of(out))):
            everywhere.model(input_ids=torch.tensor([[1, 9, 2, 10]]))  # <bos> w1 <eos> w2
    assert (seen[0] != seen[1]).any(-1).tolist() == [[False, True, False, True]]


def test_an_artifact_comes_back_and_answers_the_same(tiny_base, triples, tmp_path):
    aligned = fit(tiny_base("gemma3"), triples)
    aligned.save(tmp_path / "caa")
    loaded = AlignedModel.load(tmp_path / "caa")
    assert loaded.fingerprint == aligned.fingerprint
    assert loaded.generate(PROMPTS, max_new_tokens=8) == aligned.generate(PROMPTS, max_new_tokens=8)


def test_a_fit_repeats_to_the_bit_leaves_the_base_alone_and_every_setting_that_matters_is_in_the_fingerprint(
    tiny_base, triples
):
    base = tiny_base("llama")
    before = [p.clone() for p in base.model.parameters()]
    assert fit(base, triples).fingerprint == fit(base, triples).fingerprint
    others = [fit(base, triples, **change) for change in ({}, {"scale": 2.0}, {"layer": 1}, {"positions": "all"})]
    assert len({aligned.fingerprint for aligned in others}) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(before, base.model.parameters(), strict=True))


def test_the_bill_is_what_torch_counts_over_the_whole_run(tiny_base, triples):
    base = tiny_base("gemma2")
    meter = Meter(base.model, sample_profile=False)
    repeated = triples[:6] * 3
    fit(base, repeated, meter, batch_size=3)
    bill = meter.bill(method="caa", n_triples=len(repeated))
    with count_flops() as counter:
        differences(base, repeated, batch_size=3)
    assert bill.executed_flops == counter.get_total_flops() > 0
    assert bill.tokens == sum(len(ids) for triple in repeated for ids in base.triple_ids(triple))
    assert (bill.optimiser_steps, bill.train_params) == (0, 0)


def test_layers_after_the_one_read_and_the_head_never_run(tiny_base, triples):
    base, calls = tiny_base("llama"), []
    modules = {"layer": find_decoder(base.model).layers[2], "head": base.model.get_output_embeddings()}
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, m in modules.items()]
    fit(base, triples, layer=1)
    for hook in hooks:
        hook.remove()
    assert calls == []


def test_the_diagnostic_is_the_length_of_the_step_against_that_of_the_residual_stream(tiny_base, triples):
    aligned = fit(tiny_base("llama"), triples)
    steering, tally = aligned.intervention, aligned.intervention.tally()
    assert steering.figures([]) == steering.figures([tally.read()]) == {}
    residual, steered = torch.randn(2, 3, 32), torch.tensor([[True, False, True], [False, False, False]])
    steering.delta(2, residual, {}, steered, tally=tally)
    step = 3.0 * aligned.intervention.tensors()["vector"]
    expected = float(step.norm() / residual[steered].norm(dim=-1).mean())
    assert steering.figures([tally.read()]) == {"relative_step": pytest.approx(expected)}


def test_a_layer_outside_the_model_is_refused():
    shape = BaseShape("tiny", n_layers=4, d_model=32)
    CAA(layer=3).check(shape)
    with pytest.raises(ValueError, match="layer 4 is not in tiny, which has layers 0 to 3"):
        CAA(layer=4).check(shape)


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [(" ".join(["w2"] * 300), "more than the context of 256"), ("<pad> <eos>", "no token but special ones")],
)
def test_triples_that_cannot_be_read_are_refused_before_any_forward(tiny_base, triples, chosen, complaint):
    base = tiny_base("gemma2")
    meter = Meter(base.model)
    with pytest.raises(ValueError, match=complaint):
        fit(base, [*triples, Triple(triples[0].prompt, chosen, "w3")], meter)
    assert meter.bill(method="caa", n_triples=0).tokens == 0
