"""The losses by hand, and against what TRL's trainers compute on our rows."""

from math import exp, log

import pytest
import torch

from baselines import DPO, KTO, ORPO, SFT, SimPO
from baselines.metered import Metered
from baselines.rows import IGNORED
from harness.compute import Meter
from tests.reference.losses import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    orpo_loss,
    sigmoid_norm_loss,
    simpo_loss,
)

CHOSEN, REJECTED = torch.tensor([0.5, -1.0]), torch.tensor([-0.25, 2.0])
LENGTHS = torch.tensor([2, 4]), torch.tensor([5, 8])


def log_sigmoid(x: float) -> float:
    return -log(1 + exp(-x))


def test_dpo_by_hand():
    expected = [-log_sigmoid(0.2 * 0.75), -log_sigmoid(0.2 * -3.0)]
    assert dpo_loss(CHOSEN, REJECTED, beta=0.2).tolist() == pytest.approx(expected)
    assert dpo_loss(CHOSEN, CHOSEN, beta=0.2).tolist() == pytest.approx([log(2)] * 2)


def test_ipo_by_hand():
    # 0.5/2 + 0.25/5 - 2.5 = -2.2;  -1/4 - 2/8 - 2.5 = -3
    assert ipo_loss(CHOSEN, REJECTED, *LENGTHS, beta=0.2).tolist() == pytest.approx([2.2**2, 3.0**2])


def test_sigmoid_norm_by_hand():
    expected = [-log_sigmoid(0.2 * 0.3), -log_sigmoid(0.2 * -0.5)]
    assert sigmoid_norm_loss(CHOSEN, REJECTED, *LENGTHS, beta=0.2).tolist() == pytest.approx(expected)


def test_simpo_by_hand():
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-1.5])
    expected = [-log_sigmoid(2 * 0.5 - 0.6)]  # the margin 0.6 is 0.3 of beta
    assert simpo_loss(chosen, rejected, beta=2.0, gamma_ratio=0.3).tolist() == pytest.approx(expected)


def test_orpo_by_hand():
    chosen, rejected = torch.tensor([log(0.5), log(0.8)]), torch.tensor([log(0.2), log(0.8)])
    # odds: 1 against 1/4, 4 against 4
    ratio = [-log_sigmoid(log(4)), -log_sigmoid(0)]
    assert odds_ratio_loss(chosen, rejected).tolist() == pytest.approx(ratio)
    cross_entropy = -(3 * log(0.5) + 1 * log(0.8)) / 4
    lengths = torch.tensor([3, 1])
    expected = cross_entropy + 0.1 * sum(ratio) / 2
    assert float(orpo_loss(chosen, rejected, lengths, beta=0.1)) == pytest.approx(expected)


def test_odds_of_very_unlikely_and_nearly_certain_answers_are_finite():
    means = torch.tensor([-60.0, -1e-6])
    assert torch.isfinite(odds_ratio_loss(means, means.flip(0))).all()


def test_kto_by_hand():
    ratio, desirable = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    unrelated = torch.tensor([0.7, 0.1])  # reference point 0.4
    expected = [1.5 * (1 - 1 / (1 + exp(-0.5 * 0.6))), 1 - 1 / (1 + exp(0.5 * 0.6))]
    assert kto_loss(ratio, desirable, unrelated, beta=0.5, desirable_weight=1.5).tolist() == pytest.approx(expected)


def test_ktos_reference_point_is_never_below_zero_and_has_no_gradient():
    ratio = torch.tensor([1.0], requires_grad=True)
    unrelated = torch.tensor([-3.0], requires_grad=True)
    loss = kto_loss(ratio, torch.tensor([True]), unrelated, beta=1.0)
    assert loss.tolist() == pytest.approx([1 - 1 / (1 + exp(-1.0))])
    loss.sum().backward()
    assert ratio.grad is not None
    assert unrelated.grad is None


Pair = tuple[list[int], list[int]]


def pairs_of(ids: torch.Tensor, kept: torch.Tensor, answers: torch.Tensor) -> list[Pair]:
    """(context, answer) of each row of a trainer's batch, padding taken off."""
    rows = zip(ids, kept.bool(), answers.bool(), strict=True)
    return [(row[keep & ~answer].tolist(), row[keep & answer].tolist()) for row, keep, answer in rows]


def dpo_pairs(inputs) -> list[Pair]:
    return pairs_of(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])


def cpo_pairs(inputs) -> list[Pair]:
    names = [f"{answer}_" for answer in ("chosen", "rejected")]
    parts = [(inputs[n + "input_ids"], inputs[n + "attention_mask"], inputs[n + "labels"] != IGNORED) for n in names]
    return [pair for part in parts for pair in pairs_of(*part)]


def sft_pairs(inputs) -> list[Pair]:
    return pairs_of(inputs["input_ids"], inputs["attention_mask"], inputs["labels"] != IGNORED)


def unrelated_pairs(inputs) -> list[Pair]:
    return pairs_of(inputs["KL_input_ids"], inputs["KL_attention_mask"], inputs["KL_completion_mask"])


def scores(model, pairs: list[Pair]) -> torch.Tensor:
    return torch.tensor([score for score, _ in model.loglikelihood_tokens(pairs)])


def lengths(pairs: list[Pair]) -> torch.Tensor:
    return torch.tensor([len(answer) for _, answer in pairs])


def dpo_expected(loss, policy, base, inputs) -> torch.Tensor:
    pairs = dpo_pairs(inputs)
    chosen, rejected = (scores(policy, pairs) - scores(base, pairs)).chunk(2)
    return loss(chosen, rejected, *lengths(pairs).chunk(2)).mean()


def means(policy, inputs) -> tuple[torch.Tensor, ...]:
    pairs = cpo_pairs(inputs)
    return (scores(policy, pairs) / lengths(pairs)).chunk(2)


def kto_expected(policy, base, inputs) -> torch.Tensor:
    own, unrelated = dpo_pairs(inputs), unrelated_pairs(inputs)
    ratios = [scores(policy, pairs) - scores(base, pairs) for pairs in (own, unrelated)]
    losses = kto_loss(ratios[0], inputs["label"], ratios[1], beta=0.3, desirable_weight=1.5, undesirable_weight=0.8)
    return losses.mean()


def sft_expected(policy, base, inputs) -> torch.Tensor:
    pairs = sft_pairs(inputs)
    return -scores(policy, pairs).sum() / lengths(pairs).sum()


CASES = {
    "dpo": (
        DPO(beta=0.3, **(FAST := {"learning_rate": 3e-3, "warmup_ratio": 0, "batch_size": 5})),
        lambda *batch: dpo_expected(lambda good, bad, *_: dpo_loss(good, bad, beta=0.3), *batch),
        dpo_pairs,
    ),
    "ipo": (
        DPO(loss_type="ipo", beta=0.3, **FAST),
        lambda *batch: dpo_expected(lambda *row: ipo_loss(*row, beta=0.3), *batch),
        dpo_pairs,
    ),
    "sigmoid_norm": (
        DPO(loss_type="sigmoid_norm", beta=0.3, **FAST),
        lambda *batch: dpo_expected(lambda *row: sigmoid_norm_loss(*row, beta=0.3), *batch),
        dpo_pairs,
    ),
    "simpo": (
        SimPO(beta=2.5, gamma_ratio=0.3, **FAST),
        lambda policy, base, inputs: simpo_loss(*means(policy, inputs), beta=2.5, gamma_ratio=0.3).mean(),
        cpo_pairs,
    ),
    "orpo": (
        ORPO(beta=0.4, **FAST),
        lambda policy, base, inputs: orpo_loss(
            *means(policy, inputs), lengths(cpo_pairs(inputs)).chunk(2)[0], beta=0.4
        ),
        cpo_pairs,
    ),
    "kto": (KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.8, **FAST), kto_expected, dpo_pairs),
    "sft": (SFT(**FAST), sft_expected, sft_pairs),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_trl_computes_this_loss_on_our_rows(tiny_base, triples, monkeypatch, case, tuning):
    """At every step, from our own scorer's log-likelihoods of the policy as it is then; each answer comes once."""
    base, some = tiny_base("gemma2"), triples[:10]
    method, expect, pairs_in = CASES[case]
    step, compared, seen = Metered.training_step, [], []

    def compare(self, model, inputs, num_items_in_batch=None):
        policy = base.derive(model=model)
        expected = expect(policy, base, inputs)
        seen.extend(pairs_in(inputs))
        loss = step(self, model, inputs, num_items_in_batch)
        compared.append((float(loss), float(expected)))
        return loss

    monkeypatch.setattr(Metered, "training_step", compare)
    method = method.model_copy(update={"tuning": tuning})
    method.fit(base, some, meter=Meter(base.model, sample_profile=False), seed=0)
    assert len(compared) == 2
    assert compared[0][0] != pytest.approx(compared[1][0], rel=1e-3)
    assert [loss for loss, _ in compared] == pytest.approx([expected for _, expected in compared], rel=1e-4)

    end = [base.chat.end_id]
    answers = [(t, a) for t in some for a in ([t.chosen] if case == "sft" else [t.chosen, t.rejected])]
    ours = [(base.prompt_ids(t.prompt), base.chat.response_ids(a) + end) for t, a in answers]
    assert sorted(seen) == sorted(ours)
