"""Controls in the data, on the sandbox: preferences turned round turn the method round, and shuffled ones give nothing.

Measured on the held-out triples: the chosen answer's log-likelihood a token over the rejected one's, against the base.
"""

from dataclasses import replace

import pytest

from dspa.method import DSPA
from dspa.ridge_method import DSPARidge
from harness.compute import Meter
from harness.data.refs import ModelRef, SAERef
from harness.data.triples import draw_budget, load_triples, with_preferences
from harness.measure.statistics import Measurement, paired_difference
from harness.model.aligned import AlignedModel
from tasks.preference import Preference
from tasks.sandbox.build import ASSETS

SAES = {
    f"{role}_sae": SAERef(path=str(ASSETS / f"sae_{site}")) for role, site in (("input", "early"), ("output", "late"))
}
METHODS = {
    "dspa": DSPA(**SAES, gate="strict", alpha=1.0),
    "dspa_ridge": DSPARidge(**SAES, condition="last_turn", alpha=1.0),
}
SHUFFLES = 6


@pytest.fixture(scope="module")
def base():
    return AlignedModel.from_base(ModelRef(path=str(ASSETS / "model")))


@pytest.fixture(scope="module")
def margins():
    """(model, seed) -> preference margins of the held-out triples."""
    benchmark = Preference(triples=ASSETS / "triples_heldout.jsonl")

    def measure(model, seed=0):
        records = [record for record in benchmark.run(model) if record.metric == "preference_margin"]
        return [Measurement(seed, record.cluster, record.item, record.value) for record in records]

    return measure


@pytest.fixture(scope="module", params=METHODS)
def gain(request, base, margins):
    """Lists of triples -> paired difference to the base of the method fitted on each, every list a seed of its own."""
    before = margins(base)

    def difference(*lists):
        after, same = [], []
        for seed, triples in enumerate(lists):
            model = METHODS[request.param].fit(base, triples, meter=Meter(base.model, sample_profile=False), seed=0)
            after += margins(model, seed)
            same += [replace(measurement, seed=seed) for measurement in before]
        return paired_difference(after, same)

    return difference


@pytest.mark.slow
def test_preferences_turned_round_turn_it_round_and_shuffled_ones_give_nothing(gain):
    triples = draw_budget(load_triples(ASSETS / "triples.jsonl"), 300, seed=0).triples
    given, against = gain(triples), gain(with_preferences(triples, "swapped", seed=0))
    assert given.low > 0, given
    assert against.high < 0, against
    # A single shuffle leaves some kinds of request with more triples one way than the other, and the edit has its full
    # strength whatever the scores; so it is over several that it gives nothing.
    noise = gain(*(with_preferences(triples, "shuffled", seed) for seed in range(SHUFFLES)))
    assert noise.low < 0 < noise.high, noise
    assert noise.mean < given.low, (noise, given)
