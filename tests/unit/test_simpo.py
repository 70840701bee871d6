"""simpo: the margin between mean log-likelihoods grows, without a reference model."""

import pytest

from baselines import SimPO
from baselines.rows import labelled_rows
from harness.compute import Meter
from harness.data.triples import Triple, conversation
from tests.unit.trained import fit_checked, margin_gain


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_chosen_answers_are_preferred_more(tiny_base, triples, tmp_path, tuning):
    base, some = tiny_base("llama"), triples[:8]
    method = SimPO(tuning=tuning, epochs=2, learning_rate=1e-2, batch_size=4)
    aligned, bill = fit_checked(method, base, some, tmp_path / "artifact")
    assert margin_gain(base, aligned, some) > 2
    both = sum(
        len(row[f"{answer}_input_ids"]) for row in labelled_rows(base, some) for answer in ("chosen", "rejected")
    )
    assert bill.tokens == 2 * both
    assert bill.formula_flops == 6 * bill.total_params * bill.tokens  # nothing passes forward only


def test_the_margin_is_given_as_a_share_of_beta():
    options = SimPO().model_dump()
    assert (options["beta"], options["gamma_ratio"]) == (2.0, 0.5)
    with pytest.raises(ValueError, match="simpo_gamma"):
        SimPO(simpo_gamma=1.0)  # type: ignore[call-arg]


def test_long_texts_are_trained_on_whole_and_too_long_ones_refused(tiny_base):
    base = tiny_base("llama")
    meter = Meter(base.model)
    longest = Triple(conversation("w1"), " ".join(["w2"] * 250), "w3")  # 256 tokens with prompt and end of turn
    SimPO(tuning="lora").fit(base, [longest], meter=meter, seed=0)
    assert meter.bill(method="simpo", n_triples=1).tokens == 256 + 7
    long = Triple(conversation("w1"), " ".join(["w2"] * 251), "w3")
    with pytest.raises(ValueError, match=r"has 257 tokens, more than the context of 256"):
        SimPO().fit(base, [long], meter=Meter(base.model), seed=0)
