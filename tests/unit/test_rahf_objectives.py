"""RAHF's losses by hand, its rows, and activities and objectives against unpadded forwards of transformers."""

import copy
import math

import pytest
import torch

from baselines import RAHFSCIT, RAHFDual
from baselines.rahf.stage1 import (
    answer_logprob,
    contrastive_collator,
    contrastive_loss,
    contrastive_rows,
    contrastive_trainer,
    padded_texts,
)
from baselines.rahf.stage2 import FitCollator, activities, activity_loss, fit_rows, fit_trainer, moved_activity
from harness.compute import Meter
from harness.model.decoder import find_decoder
from tests.unit.test_rahf import BAD, GOOD, QUICK, brute_activity, brute_logprob, fit


def trainer_of(trainer_class, base, rows, collator, model, tmp_path):
    """A trainer as `TrainedMethod.train` makes it, for a look at its loss."""
    from datasets import Dataset
    from trl import SFTConfig

    return trainer_class(
        model=model,
        args=RAHFSCIT(**QUICK).arguments(SFTConfig, str(tmp_path), 0, on_cpu=True),
        train_dataset=Dataset.from_list(rows),
        data_collator=collator,
        meter=Meter(base.model),
    )


# --- the losses, by hand


def test_p_is_the_mean_logprob_of_the_answers_tokens():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    answer = torch.tensor([[1, 2]])
    value = answer_logprob(logits, answer, torch.tensor([[1, 1]]))
    assert value.tolist() == pytest.approx([(math.log(0.25) + math.log(0.8)) / 2])


def test_p_divides_by_the_answers_length_and_not_by_the_padded_one():
    logits, answer = torch.randn(1, 6, 5), torch.randint(0, 5, (1, 6))
    padded = answer_logprob(logits, answer, torch.tensor([[1, 1, 0, 0, 0, 0]]))
    torch.testing.assert_close(padded, answer_logprob(logits[:, :2], answer[:, :2], torch.ones(1, 2, dtype=torch.long)))


def test_the_printed_objective_by_hand():
    plus, minus = [-1.0, -2.0], [-1.5, -0.5]
    shares = [math.exp(p) / (math.exp(p) + math.exp(m)) for p, m in zip(plus, minus, strict=True)]
    by_hand = -sum(p + math.log(s) for p, s in zip(plus, shares, strict=True)) / 2
    assert float(contrastive_loss(torch.tensor(plus), torch.tensor(minus))) == pytest.approx(by_hand)


def test_the_released_objective_by_hand():
    plus, minus, eps = -1.0, -1.5, 0.2
    s_plus, s_minus = math.exp(plus), math.exp(minus)
    whole = s_plus + s_minus
    by_hand = -plus + (1 - eps) * -math.log(s_plus / whole) + eps * -math.log(s_minus / whole)
    assert float(contrastive_loss(torch.tensor([plus]), torch.tensor([minus]), eps)) == pytest.approx(by_hand)


def test_the_objective_stays_finite_where_exponentials_would_not():
    plus = torch.tensor([-400.0], requires_grad=True)
    contrastive_loss(plus, torch.tensor([-1.0])).backward()
    assert plus.grad is not None and float(plus.grad) == pytest.approx(-2.0)


def test_the_target_and_both_distances_by_hand():
    own = torch.zeros(1, 1, 2, 2)
    plus, minus = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0], [0.0, 3.0]]]])
    target = moved_activity(own, plus, minus, 5.0)
    assert target.tolist() == [[[[5.0, 0.0], [0.0, -10.0]]]]
    both, first = torch.tensor([[1, 1]]), torch.tensor([[1, 0]])
    assert float(activity_loss(own, target, both)) == pytest.approx((5 + 10) / 2)
    assert float(activity_loss(own, target, both, "squared")) == pytest.approx((25 + 100) / 2)
    assert float(activity_loss(own, target, first)) == pytest.approx(5)


def test_every_answer_token_of_every_layer_counts_the_same_and_padding_not_at_all():
    fitted, target = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    kept = [(layer, row, pos) for layer in range(3) for row in range(2) for pos in range(4) if mask[row, pos]]
    lengths = [math.dist(fitted[i].tolist(), target[i].tolist()) for i in kept]
    assert float(activity_loss(fitted, target, mask)) == pytest.approx(sum(lengths) / len(lengths), rel=1e-5)


def test_padding_at_its_target_leaves_the_gradient_finite():
    fitted = torch.zeros(1, 1, 2, 3, requires_grad=True)
    target = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
    activity_loss(fitted, target, torch.tensor([[1, 0]])).backward()
    assert fitted.grad is not None and fitted.grad.isfinite().all()


# --- rows and texts


def test_chosen_answers_go_with_the_good_instruction_and_rejected_ones_with_the_bad(tiny_base, triples):
    base, triple = tiny_base(), triples[0]
    first, second = contrastive_rows(base, [triple], (GOOD, BAD))
    good = base.derive(system_prompt=GOOD).prompt_ids(triple.prompt)
    bad = base.derive(system_prompt=BAD).prompt_ids(triple.prompt)
    assert (first["plus"], first["minus"]) == (good, bad)
    assert (second["plus"], second["minus"]) == (bad, good)
    assert base.tokenizer.decode(first["answer"]).startswith(triple.chosen)
    assert base.tokenizer.decode(second["answer"]).startswith(triple.rejected)


def test_answers_end_in_the_chat_formats_own_end_of_turn(tiny_base, triples):
    """The released code ends them by the characters " </s>", which most tokenizers take for text."""
    base = tiny_base()
    rows = contrastive_rows(base, triples, (GOOD, BAD))
    lengths = [len(base.chat.response_ids(text)) for t in triples for text in (t.chosen, t.rejected)]
    assert all(row["answer"][-1] == base.chat.end_id for row in rows)
    assert [len(row["answer"]) for row in rows] == [n + 1 for n in lengths]
    assert all(answer[-1] == base.chat.end_id for row in fit_rows(base, triples, None) for answer in row["answers"])


def test_answers_start_in_one_column_whatever_the_prompts_lengths():
    ids, mask = padded_texts([[5], [6, 7, 8]], [[1, 2], [3]], 0)
    assert ids.tolist() == [[0, 0, 5, 1, 2], [6, 7, 8, 3, 0]]
    assert mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_the_coin_takes_both_answers_and_belongs_to_the_seed(tiny_base, triples):
    rows = fit_rows(tiny_base(), triples, None)

    def thrown(seed: int) -> list:
        collate = FitCollator(0, seed)
        return [collate([row])["input_ids"].tolist()[0] for row in rows * 2]

    first = thrown(0)
    chosen = [ids == row["prompt"] + row["answers"][0] for ids, row in zip(first, rows * 2, strict=True)]
    assert 12 < sum(chosen) < 36
    assert first == thrown(0) != thrown(1)
    assert first[:24] != first[24:], "it is thrown anew in every pass"


def test_instructions_that_the_tokenizer_cannot_tell_apart_are_refused(tiny_base, triples):
    with pytest.raises(ValueError, match="same token ids"):
        fit(tiny_base(), triples, good_instruction="w1  w2", bad_instruction="w1 w2")


# --- the objectives on padded batches against unpadded forwards


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_stage_1_equals_unpadded_forwards_though_instructions_differ_in_length(tiny_base, triples, tmp_path, smoothing):
    base = tiny_base()
    rows = contrastive_rows(base, triples[:3], (GOOD, BAD))
    collator = contrastive_collator(base.chat.pad_id)
    trainer = trainer_of(contrastive_trainer(smoothing), base, rows, collator, copy.deepcopy(base.model), tmp_path)
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, collator(rows)))
        plus = torch.tensor([brute_logprob(base.model, row["plus"], row["answer"]) for row in rows])
        minus = torch.tensor([brute_logprob(base.model, row["minus"], row["answer"]) for row in rows])
    assert loss == pytest.approx(float(contrastive_loss(plus, minus, smoothing)), rel=1e-5)


def test_a_copying_model_shows_that_logits_are_shifted(tiny_base, triples, tmp_path):
    """A model that always predicts the token it has just seen: unshifted, the answer would look certain."""

    class Copying(torch.nn.Module):
        def forward(self, input_ids, logits_to_keep, **_):
            logits = 50.0 * torch.nn.functional.one_hot(input_ids, 48)[:, -logits_to_keep:]
            return type("Output", (), {"logits": logits})

    base = tiny_base()
    rows = [{"plus": [3, 4, 9], "minus": [4, 9], "answer": [9, 9, 10], "length": 6}]
    collator = contrastive_collator(0)
    trainer = trainer_of(contrastive_trainer(0.0), base, rows, collator, copy.deepcopy(base.model), tmp_path)
    loss = float(trainer.compute_loss(Copying(), collator(rows)))
    assert loss == pytest.approx(50 / 3 + math.log(2), rel=1e-4)  # 9 9 right, 10 wrong, whatever the instruction


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_activities_are_transformers_hidden_states_at_the_answers_tokens(tiny_base, triples, family):
    base = tiny_base(family)
    rows, layers = fit_rows(base, triples[:3], (GOOD, BAD)), (1, 3)
    answers = [row["answers"][0] for row in rows]
    ids, mask = padded_texts([row["prompt"] for row in rows], answers, base.chat.pad_id)
    with torch.no_grad():
        seen = activities(base.model, layers, ids, mask, max(map(len, answers)))
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            expected = brute_activity(base.model, row["prompt"], answer, layers)
            torch.testing.assert_close(seen[:, index, : len(answer)], expected, rtol=1e-4, atol=1e-5)


def test_no_block_from_the_last_target_layer_on_is_run_nor_the_head(tiny_base):
    model, ran = copy.deepcopy(tiny_base().model), []
    for index, block in enumerate(find_decoder(model).layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    ids = torch.tensor([[1, 9, 10]])
    activities(model, (1, 2), ids, torch.ones_like(ids), 2)
    assert ran == [0, 1]


@pytest.mark.parametrize("distance", ["plain", "squared"])
@pytest.mark.parametrize("method", [RAHFSCIT, RAHFDual])
def test_stage_2_equals_unpadded_forwards(tiny_base, triples, tmp_path, method, distance):
    base, layers = tiny_base(), (1, 3)
    rows = fit_rows(base, triples[:4], (GOOD, BAD) if method is RAHFSCIT else None)
    bad = None if method is RAHFSCIT else noisy(base.model, 1)
    policy = with_lora(noisy(base.model, 2), layers)
    trainer_class = fit_trainer(layers, alpha=3.0, distance=distance, bad=bad)
    trainer = trainer_of(trainer_class, base, rows, FitCollator(0, 5), policy, tmp_path)
    trainer.model.eval()
    frozen, errors = noisy(base.model, 2), []
    with torch.no_grad():
        loss = float(trainer.compute_loss(policy, FitCollator(0, 5)(rows)))
        batch = FitCollator(0, 5)(rows)  # only to learn how the coin fell
        for index, row in enumerate(rows):
            ids = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
            answer = ids[len(row["prompt"]) :]
            assert answer in row["answers"]
            own = brute_activity(frozen, row["prompt"], answer, layers)
            if bad is None:
                plus, minus = (brute_activity(frozen, prompt, answer, layers) for prompt in row["contrast"])
            else:
                plus, minus = own, brute_activity(bad, row["prompt"], answer, layers)
            fitted = brute_activity(policy, row["prompt"], answer, layers)
            norm = (fitted - own - 3.0 * (plus - minus)).square().sum(-1).sqrt()
            errors += (norm if distance == "plain" else norm.square()).flatten().tolist()
    assert loss == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def noisy(model, seed: int):
    """The same noise for the same seed."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


def with_lora(model, layers):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = {"target_modules": ["q_proj"], "layers_to_transform": list(range(max(layers)))}
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **targets))
