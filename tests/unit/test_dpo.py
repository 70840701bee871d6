"""dpo: preferences are learned against a reference model whose passes are on the bill."""

import pytest

from baselines import DPO
from baselines.rows import labelled_rows
from tests.unit.trained import fit_checked, margin_gain


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tuning": "lora"}, id="LoRA"),
        pytest.param({"tuning": "full"}, id="full"),
        pytest.param({"tuning": "lora", "loss_type": "ipo"}, id="ipo"),
        pytest.param({"tuning": "lora", "loss_type": "sigmoid_norm", "beta": 5.0}, id="length-normalised"),
        pytest.param({"tuning": "full", "gradient_checkpointing": True, "accumulation": 2}, id="checkpointing"),
    ],
)
def test_the_chosen_answers_are_preferred_more_and_every_pass_is_billed(tiny_base, triples, tmp_path, options):
    base, some = tiny_base("llama"), triples[:8]
    method = DPO(epochs=2, learning_rate=1e-2, batch_size=4, **options)
    aligned, bill = fit_checked(method, base, some, tmp_path / "artifact")
    assert margin_gain(base, aligned, some) > 1
    both = sum(
        len(row[f"{answer}_input_ids"]) for row in labelled_rows(base, some) for answer in ("chosen", "rejected")
    )
    assert bill.tokens == 4 * both  # two epochs, each text once through the policy and once through the reference
    assert bill.formula_flops == (6 + 2) * bill.total_params * 2 * both
