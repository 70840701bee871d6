"""orpo: the chosen answers become likelier and are preferred more, without a reference model."""

import pytest

from baselines import ORPO
from harness.compute import Meter
from harness.data.triples import Triple, conversation
from tests.unit.trained import answer_loglikelihoods, fit_checked, margin_gain


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_chosen_answers_become_likelier_and_are_preferred_more(tiny_base, triples, tmp_path, tuning):
    base, some = tiny_base("llama"), triples[:8]
    method = ORPO(tuning=tuning, epochs=2, learning_rate=1e-2, batch_size=4, beta=1.0)
    aligned, bill = fit_checked(method, base, some, tmp_path / "artifact")
    before, after = (sum(answer_loglikelihoods(model, some)[0]) for model in (base, aligned))
    assert after > before + len(some)
    assert margin_gain(base, aligned, some) > 2
    assert bill.formula_flops == 6 * bill.total_params * bill.tokens  # nothing passes forward only


def test_a_text_that_does_not_fit_the_context_is_refused(tiny_base):
    base = tiny_base("llama")
    long = Triple(conversation("w1"), "w3", " ".join(["w2"] * 300))
    with pytest.raises(ValueError, match=r"has 306 tokens, more than the context of 256"):
        ORPO().fit(base, [long], meter=Meter(base.model), seed=0)
