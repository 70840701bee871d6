"""In the sandbox DSPA raises the margin of held-out triples, and its controls do not."""

from pathlib import Path

import numpy as np
import pytest

from dspa.method import DSPA
from harness.compute import Meter
from harness.data.refs import ModelRef, SAERef
from harness.data.triples import load_triples
from harness.model.aligned import AlignedModel
from tasks.preference import Preference

ASSETS = Path(__file__).parents[2] / "tasks/sandbox/assets"


def margins(model: AlignedModel) -> np.ndarray:
    records = Preference(triples=ASSETS / "triples_heldout.jsonl").run(model)
    return np.array([record.value for record in records if record.metric == "preference_margin"])


@pytest.fixture(scope="module")
def gains():
    """By how much each held-out triple's margin rises above the base's."""
    base = AlignedModel.from_base(ModelRef(path=str(ASSETS / "model")))
    triples, before, found = load_triples(ASSETS / "triples.jsonl")[:300], margins(base), {}
    saes = {
        side: SAERef(path=str(ASSETS / name)) for side, name in (("input_sae", "sae_early"), ("output_sae", "sae_late"))
    }
    for control in (None, "random_latents", "other_prompt"):
        method = DSPA(**saes, gate="strict", alpha=0.5, condition="last_turn", control=control)
        fitted = method.fit(base, triples, meter=Meter(base.model, sample_profile=False), seed=0)
        found[control] = margins(fitted) - before
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 %, of the mean over the prompts."""
    error = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - error), float(values.mean() + error)


def test_the_prompts_own_latents_raise_the_margin(gains):
    assert interval(gains[None])[0] > 0.03


@pytest.mark.parametrize("control", ["random_latents", "other_prompt"])
def test_random_latents_and_another_prompts_do_not(gains, control):
    low, high = interval(gains[control])
    assert low <= 0.005
    assert high < interval(gains[None])[0]
    assert interval(gains[None] - gains[control])[0] > 0
