"""FLOPs that follow from counted steps are those that counting gives."""

import random
from fractions import Fraction

import pytest

from baselines.dpo import DPO
from baselines.fpo import FPO
from baselines.kto import KTO
from baselines.orpo import ORPO
from baselines.sft import SFT
from baselines.simpo import SimPO
from dspa.method import DSPA
from harness.compute import Meter
from harness.compute.forms import Counts, combination
from harness.data.triples import Budget, Triple, conversation
from harness.experiment.fitting import fit
from harness.method import MethodConfig


@pytest.fixture(scope="module")
def uneven() -> Budget:
    """48 triples whose prompts and answers have 1 to 14 words."""
    draw = random.Random(2)

    def words() -> str:
        return " ".join(f"w{draw.randrange(40)}" for _ in range(draw.randint(1, 14)))

    return Budget(tuple(Triple(conversation(words()), words(), words() + " w1 w2") for _ in range(48)), 0)


def methods(refs) -> dict[str, MethodConfig]:
    return {
        "sft": SFT(tuning="lora", batch_size=3),
        "full sft": SFT(batch_size=3, accumulation=2),
        "dpo": DPO(tuning="lora", batch_size=3),
        "kto": KTO(tuning="lora", batch_size=3),
        "orpo": ORPO(tuning="lora", batch_size=3),
        "simpo": SimPO(batch_size=3),
        "fpo": FPO(sae=refs[1], tuning="lora", batch_size=3),
        "dspa": DSPA(input_sae=refs[0], output_sae=refs[1], batch_size=3),
    }


@pytest.mark.parametrize("name", ["sft", "full sft", "dpo", "kto", "orpo", "simpo", "fpo", "dspa"])
def test_the_bill_is_that_of_counting_every_step(name, uneven, tiny_base, sae_refs, monkeypatch):
    method, base = methods(sae_refs)[name], tiny_base("llama")
    asked: list[bool] = []
    found = Counts.of

    def of(self, form):
        asked.append(found(self, form) is not None)
        return found(self, form)

    monkeypatch.setattr(Counts, "of", of)
    bill = fit(method, base, uneven, 0).bill
    assert sum(asked) >= 5, "some steps were not counted"
    monkeypatch.setattr(Counts, "of", lambda self, form: None)
    counted = fit(method, base, uneven, 0).bill
    assert bill is not None and counted is not None
    assert bill["executed_flops"] == counted["executed_flops"]
    assert exact(bill) == exact(counted)


def exact(bill) -> list[tuple]:
    return sorted(
        (row["stage"], row["step"], row["operator"], row["flops"]) for row in bill["operators"] if row["flops"]
    )


def test_a_combination_is_found_exactly_or_not_at_all():
    assert combination([(2, 4), (1, 3)], (5, 13)) == [1, 3]
    assert combination([(3, 0, 0), (0, 7, 0)], (1, 1, 0)) == [Fraction(1, 3), Fraction(1, 7)]
    assert combination([(0, 2), (5, 0)], (5, 2)) == [1, 1]
    assert combination([(3, 0, 0), (0, 7, 0)], (1, 1, 1)) is None
    assert combination([], (1, 0)) is None


def test_two_counts_must_agree_before_any_is_left_out():
    counts = Counts()
    for form in ((2, 4), (3, 9)):
        assert counts.of(form) is None
        counts.learn(form, {"mm": 10 * form[0], "attention": 7 * form[1]})
    for form in ((5, 25), (4, 8)):
        assert counts.of(form) is None
        counts.learn(form, {"mm": 10 * form[0], "attention": 7 * form[1]})
    assert counts.of((6, 36)) == {"mm": 60, "attention": 252}
    assert Counts.of_state(counts.state()) == counts


def test_after_a_count_that_does_not_agree_every_step_is_counted():
    counts = Counts()
    for size, flops in ((1, 10), (2, 20), (3, 31), (4, 40), (5, 50), (6, 60)):
        assert counts.of((size,)) is None
        counts.learn((size,), {"mm": flops})
    assert counts.refuted


def test_a_step_with_a_form_is_billed_without_being_counted(monkeypatch):
    """Steps say what they would be counted as; what is not asked is not counted."""
    import torch

    meter, counted = Meter(torch.nn.Linear(2, 2)), []
    weight = torch.ones(8, 8)
    with meter.stage("all"):
        for rows in (3, 5, 9, 4, 11, 7):
            with meter.step(("forward", rows), tokens=rows, kind="forward", form=(rows,)):
                counted.append(torch.utils._python_dispatch._get_current_dispatch_mode() is not None)
                torch.ones(rows, 8) @ weight
    assert counted == [True, True, True, False, False, False]
    assert meter.executed_flops == 2 * 64 * (3 + 5 + 9 + 4 + 11 + 7)
