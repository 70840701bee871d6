"""lm-eval's model class: the numbers of `hf` without intervention, steering conditioned on the context with one."""

import logging

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from harness.data.triples import conversation
from harness.evaluators import lm_eval as adapter
from harness.evaluators.lm_eval import AlignedLM

FAMILIES = ("llama", "gemma2", "qwen3")
PAIRS = [
    ("w1 w2 w3", " w4"),
    ("w1 w2 w3", " w5 w6"),
    ("w1 w2 w3", " w5 w7 w8 w9"),
    ("w9 w8 w7 w6 w5 w4", " w3"),
    ("w2 ", "w1"),
    ("<bos>w2", " w1 w1"),
    ("", "w3 w4"),
]


class Push:
    """Adds a direction that depends on the prompt's mean residual: any wrong context changes the result."""

    name = "test-push"
    positions = "generation"
    read_layers = (1,)
    write_layers = (2,)

    def __init__(self, strength):
        self.strength = strength

    def condition(self, residual, prompt, *, tally=None):
        weight = prompt[..., None].to(residual[1].dtype)
        return {"mean": (residual[1] * weight).sum(1) / weight.sum(1).clamp(min=1)}

    def delta(self, layer, residual, state, steered, *, tally=None):
        return self.strength * state["mean"].flip(-1)[:, None] * steered[..., None]

    def tensors(self):
        return {}

    def params(self):
        return {"strength": self.strength}

    def identity(self):
        return self.params()

    @classmethod
    def restore(cls, tensors, params, device):
        return cls(**params)

    def to(self, device):
        return self

    def tally(self):
        return None

    def figures(self, tallies):
        return {}


def steered(base, strength=3.0):
    return base.derive(intervention=Push(strength), method="push")


def requests(kind, arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=i, metadata=("t", i, 1))
        for i, args in enumerate(arguments)
    ]


def loglikelihoods(lm, pairs=PAIRS):
    return lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)


def hf(aligned, **options):
    return HFLM(pretrained=aligned.model, tokenizer=aligned.tokenizer, **options)


def assert_same(ours, theirs):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)


def test_it_is_registered_beside_lm_evals_own_models():
    assert get_model("aligned") is AlignedLM
    assert get_model("hf") is HFLM


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"max_length": 4}])
def test_unsteered_loglikelihoods_are_those_of_hf(tiny_base, family, options):
    aligned = tiny_base(family)
    assert_same(loglikelihoods(AlignedLM(aligned, **options)), loglikelihoods(hf(aligned, batch_size=3, **options)))


@pytest.mark.parametrize("family", FAMILIES)
def test_unsteered_rolling_loglikelihoods_are_those_of_hf_over_several_windows(tiny_base, family):
    texts = [(" ".join(f"w{(7 * i) % 40}" for i in range(23)),), ("w1 w2",)]
    ours, theirs = (
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
        for lm in (AlignedLM(tiny_base(family), max_length=8), hf(tiny_base(family), max_length=8))
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


GENERATE = [
    ("w1 w2 w3", {"until": ["w7"], "max_gen_toks": 12}),
    ("w9 w8", {"until": [], "max_gen_toks": 12}),
    ("w4 w5 w6 w7", {"until": ["w3 w2"], "max_gen_toks": 12}),
]


def generated(lm, arguments=GENERATE):
    return lm.generate_until(requests("generate_until", arguments), disable_tqdm=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_unsteered_generation_is_that_of_hf(tiny_base, family):
    assert generated(AlignedLM(tiny_base(family))) == generated(hf(tiny_base(family), batch_size=2))


@pytest.mark.parametrize("family", FAMILIES)
def test_steered_loglikelihoods_equal_one_forward_per_request_without_cache_or_padding(tiny_base, family):
    aligned = steered(tiny_base(family))
    lm = AlignedLM(aligned)
    scores = loglikelihoods(lm)
    for (context, continuation), (score, _) in zip(PAIRS[:4], scores, strict=False):
        context_ids, continuation_ids = lm._encode_pair(context, continuation)
        with torch.no_grad(), aligned.steering() as session:
            assert session is not None
            session.prompt_lengths([len(context_ids)])
            logits = aligned.model(input_ids=torch.tensor([context_ids + continuation_ids])).logits[0]
        logprobs = logits.log_softmax(-1)[len(context_ids) - 1 : -1]
        slow = logprobs.gather(1, torch.tensor(continuation_ids)[:, None]).sum()
        assert score == pytest.approx(float(slow), abs=1e-4)
    unsteered = loglikelihoods(AlignedLM(tiny_base(family)))
    assert max(abs(a - b) for (a, _), (b, _) in zip(scores, unsteered, strict=True)) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_steered_generation_is_greedy_under_steering_whatever_the_batch(tiny_base, family):
    aligned = steered(tiny_base(family))
    arguments = [(text, {"until": [], "max_gen_toks": 6}) for text in ("w1 w2 w3", "w9 w8", "w4 w5 w6 w7 w8")]
    together = generated(AlignedLM(aligned), arguments)
    assert together == generated(AlignedLM(aligned, batch_size=1), arguments)
    ids = list(aligned.tokenizer("w9 w8")["input_ids"])
    prompt = len(ids)
    for _ in range(6):
        with torch.no_grad(), aligned.steering() as session:
            assert session is not None
            session.prompt_lengths([prompt])
            ids.append(int(aligned.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in aligned.chat.stop_ids:
            break
    assert together[1] == aligned.tokenizer.decode(ids[prompt:], skip_special_tokens=True)


def test_steering_reaches_generation_and_rolling_loglikelihoods(tiny_base):
    base = tiny_base("llama")
    texts = requests("loglikelihood_rolling", [("w1 w2 w3 w4 w5",)])
    rolling = [
        AlignedLM(model, max_length=3).loglikelihood_rolling(texts, disable_tqdm=True)[0]
        for model in (base, steered(base))
    ]
    assert abs(rolling[0] - rolling[1]) > 0.1
    assert generated(AlignedLM(base)) != generated(AlignedLM(steered(base)))


def test_left_truncation_is_counted_and_logged(tiny_base, caplog):
    lm = AlignedLM(tiny_base("llama"), max_length=4)
    with caplog.at_level(logging.WARNING):
        loglikelihoods(lm, [("w1 w2 w3", " w4"), ("w1 w2 w3 w4 w5 w6", " w7")])
    assert lm.truncated_requests == 1
    assert "cut 2 tokens" in caplog.text
    assert lm.get_model_info()["truncated_requests"] == 1


def test_prompts_cut_to_leave_room_for_an_answer_are_counted_and_cut_as_by_hf(tiny_base, caplog):
    aligned = tiny_base("llama")
    arguments = [("w1 w2", {"max_gen_toks": 2}), ("w1 w2 w3 w4 w5 w6", {"max_gen_toks": 2})]
    lm = AlignedLM(aligned, max_length=6)
    with caplog.at_level(logging.WARNING):
        ours = lm.generate_until(requests("generate_until", arguments), disable_tqdm=True)
    assert lm.truncated_requests == 1
    assert "cut 1 prompts on the left to 4 tokens" in caplog.text
    hf = HFLM(pretrained=aligned.model, tokenizer=aligned.tokenizer, max_length=6)
    assert ours == hf.generate_until(requests("generate_until", arguments), disable_tqdm=True)


def test_a_continuation_longer_than_the_context_length_is_refused(tiny_base):
    with pytest.raises(ValueError, match="a continuation of 3 tokens exceeds the context length 2"):
        loglikelihoods(AlignedLM(tiny_base("llama"), max_length=2), [("w1", " w2 w3 w4")])


def test_the_models_tokenizer_is_left_as_it_was(tiny_base):
    import copy
    from dataclasses import replace

    aligned = tiny_base("llama")
    tokenizer = copy.deepcopy(aligned.tokenizer)
    tokenizer.pad_token = None
    bare = aligned.derive(base=replace(aligned.base, tokenizer=tokenizer))
    assert AlignedLM(bare).tokenizer.pad_token is not None
    assert tokenizer.pad_token is None


def test_batch_size_auto_stands_for_max_batch_size(tiny_base):
    assert AlignedLM(tiny_base("llama"), batch_size="auto", max_batch_size=5).batch_size == 5
    assert AlignedLM(tiny_base("llama"), batch_size="3").batch_size == 3


class Untouchable(AlignedLM):
    """Fails when it has to compute."""

    def _loglikelihood_tokens(self, *args, **kwargs):
        raise AssertionError("computed although cached")


def test_the_request_cache_serves_the_same_model_and_no_other(tiny_base, tmp_path):
    base, path = tiny_base("llama"), str(tmp_path / "cache.db")
    arguments = requests("loglikelihood", PAIRS[:4])
    plain = CachingLM(AlignedLM(base), path).loglikelihood(arguments)
    pushed = CachingLM(AlignedLM(steered(base)), path).loglikelihood(arguments)
    assert pushed == AlignedLM(steered(base)).loglikelihood(arguments)
    assert pushed != plain
    assert CachingLM(Untouchable(base), path).loglikelihood(arguments) == plain
    assert CachingLM(Untouchable(steered(base)), path).loglikelihood(arguments) == pushed
    for other in (Untouchable(steered(base, 2.0)), Untouchable(base, max_length=3)):
        with pytest.raises(AssertionError, match="computed although cached"):
            CachingLM(other, path).loglikelihood(arguments)


def test_the_cache_holds_what_was_done_before_an_interruption(tiny_base, tmp_path):
    base, path = tiny_base("llama"), str(tmp_path / "cache.db")
    lm = AlignedLM(base)
    CachingLM(lm, path)  # hands the model its cache hook
    done = lm.loglikelihood(requests("loglikelihood", PAIRS[:4]))
    assert CachingLM(Untouchable(base), path).loglikelihood(requests("loglikelihood", PAIRS[:4])) == done


def test_chat_rendering_is_the_models_own_with_the_instruction_that_it_carries(tiny_base):
    base = tiny_base("llama")
    history = [{"role": "user", "content": "w1"}]
    assert AlignedLM(base).apply_chat_template(history) == "<bos>usr w1 end ast "
    instructed = base.derive(system_prompt="w3")
    lm = AlignedLM(instructed)
    text = lm.apply_chat_template(history)
    assert "w3" in text
    assert lm.tok_encode(text) == instructed.prompt_ids(conversation("w1"))


def test_the_hh_format_is_rendered_to_the_ids_the_model_was_aligned_on(tiny_base):
    from dataclasses import replace

    from harness.data.triples import conversation
    from harness.model.chat import ChatFormat

    base = tiny_base("llama")
    hh = base.derive(base=replace(base.base, chat=ChatFormat(base.tokenizer, "hh")))
    lm = AlignedLM(hh)
    text = lm.apply_chat_template([{"role": "user", "content": "w1 w2"}])
    assert text == "<bos>\n\nHuman: w1 w2\n\nAssistant:"
    assert lm.tok_encode(text) == hh.prompt_ids(conversation("w1 w2"))
    assert lm.chat_template(True) == "hh"
    with pytest.raises(ValueError, match="no template called 'tool'"):
        lm.chat_template("tool")


def test_a_context_is_tokenised_once_for_its_choices(tiny_base, monkeypatch):
    lm = AlignedLM(tiny_base("llama"))
    seen = []
    encode = lm.tokenizer.encode
    monkeypatch.setattr(lm.tokenizer, "encode", lambda text, **options: seen.append(text) or encode(text, **options))
    loglikelihoods(lm, [("w1 w2", " w3"), ("w1 w2", " w4"), ("w1 w2", " w5")])
    assert seen.count("w1 w2") == 1


def test_a_missing_artifact_is_reported(tmp_path):
    with pytest.raises(ValueError, match="is not an artifact folder"):
        AlignedLM(str(tmp_path))


def test_without_cuda_lm_evals_default_device_means_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [adapter._device(name) for name in (None, "cuda:0", "cpu")] == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [adapter._device(name) for name in (None, "cuda:1", "cpu")] == ["cuda:0", "cuda:1", "cpu"]
