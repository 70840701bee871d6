"""sft: the chosen answers become likelier, and the result can be the base of everything after it."""

import pytest

from baselines import DPO, SFT
from baselines.rows import IGNORED, answer_rows
from harness.compute import Meter
from harness.data.refs import ModelRef
from harness.data.triples import Triple, conversation
from harness.model.aligned import AlignedModel
from tests.unit.trained import answer_loglikelihoods, fit_checked

FAST = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4}


def test_labels_are_the_answer_and_the_end_of_turn_alone(tiny_base):
    base = tiny_base("llama")
    (row,) = answer_rows(base, [Triple(conversation("w1 w2"), "w3 w4", "w5")])
    tokens = base.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens == ["<bos>", "usr", "w1", "w2", "end", "ast", "w3", "w4", "end"]
    assert row["labels"] == [IGNORED] * 6 + row["input_ids"][6:]
    assert row["length"] == 9


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_chosen_answers_become_likelier(tiny_base, triples, tmp_path, tuning):
    base, some = tiny_base("llama"), triples[:8]
    aligned, bill = fit_checked(SFT(tuning=tuning, **FAST), base, some, tmp_path / "artifact")
    before, after = (sum(answer_loglikelihoods(model, some)[0]) for model in (base, aligned))
    assert after > before + len(some)
    assert (bill.optimiser_steps, bill.epochs) == (4, 2)
    assert bill.tokens == 2 * sum(row["length"] for row in answer_rows(base, some))  # no reference, no rejected


@pytest.mark.parametrize("chat", ["tokenizer", "hh"])
def test_its_weights_folder_is_a_base_model(tiny_folders, triples, tmp_path, chat):
    base = AlignedModel.from_base(ModelRef(path=str(tiny_folders["llama"]), chat=chat))
    tuned = SFT(tuning="full", **FAST).fit(base, triples[:6], meter=Meter(base.model), seed=0)
    tuned.save(tmp_path / "stage0")
    start = AlignedModel.from_base(ModelRef(path=str(tmp_path / "stage0" / "weights"), chat=chat))
    assert start.chat.identity == base.chat.identity
    assert answer_loglikelihoods(start, triples) == answer_loglikelihoods(tuned, triples)
    dpo = DPO(tuning="lora", **FAST).fit(start, triples[:6], meter=Meter(start.model), seed=0)
    dpo.save(tmp_path / "dpo")
    assert AlignedModel.load(tmp_path / "dpo").fingerprint == dpo.fingerprint


def test_a_text_that_does_not_fit_the_context_is_refused(tiny_base):
    base = tiny_base("llama")
    long = Triple(conversation("w1"), " ".join(["w2"] * 300), "w3")
    with pytest.raises(ValueError, match=r"has 306 tokens, more than the context of 256"):
        SFT().fit(base, [long], meter=Meter(base.model), seed=0)
