"""Hyper-parameters that need no new fit: an adjusted artifact is the one that a fit of its own would have given."""

import pytest

from harness.data.triples import Budget, conversation
from harness.experiment.fitting import fit
from harness.method import METHODS
from harness.plugins import load_plugins

load_plugins()

SETTINGS = {
    "dspa": {"gate": "strict", "percentile": 50.0, "min_support": 1},
    "dspa_ridge": {},
    "static_sae": {},
    "caa": {"layer": 2},
    "repe": {"layer": 2, "directions": 4},
}
"""What each method of these needs beside its SAEs; other methods have no online settings, or those of one of these."""
CHANGES = {
    "dspa": {"alpha": 0.7, "k_diff": 5, "k_prompt": 3, "mode": "both", "scale": "own"},
    "dspa_ridge": {"alpha": 0.7, "k_diff": 5, "mode": "both", "scale": "own"},
    "static_sae": {"alpha": 0.7, "scale": "own", "active_only": True, "positions": "all"},
    "caa": {"scale": 2.5, "positions": "all"},
    "repe": {"scale": -1.5, "positions": "all"},
}


@pytest.fixture(scope="module")
def make(sae_refs, tiny_base, triples):
    both = {"input_sae": sae_refs[0], "output_sae": sae_refs[1]}
    saes = {"dspa": both, "dspa_ridge": both, "static_sae": {"sae": sae_refs[1]}}

    def build(name: str, **changes):
        return METHODS[name](**saes.get(name, {}), **SETTINGS[name] | changes)

    def fitted(method):
        return fit(method, tiny_base("gemma2"), Budget(tuple(triples[:10]), 0), seed=0)

    return build, fitted


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, found in CHANGES.items() for key in [None, *found]])
def test_an_adjusted_artifact_is_the_one_that_a_fit_gives(make, name, key):
    build, fitted = make
    changes = CHANGES[name] if key is None else {key: CHANGES[name][key]}
    before, wanted = fitted(build(name)), fitted(build(name, **changes))
    adjusted = build(name, **changes).adjust(before)
    assert adjusted.fingerprint == wanted.fingerprint != before.fingerprint
    assert (adjusted.method, adjusted.params) == (wanted.method, wanted.params)
    asked = [conversation("w1 w2 w3"), conversation("w30")]
    answers, expected = ([a.text for a in m.generate(asked, max_new_tokens=6)] for m in (adjusted, wanted))
    assert answers == expected


def test_adjusting_and_adjusting_back_changes_nothing_and_leaves_the_original_alone(make):
    build, fitted = make
    for name, changes in CHANGES.items():
        before = fitted(build(name))
        fingerprint = before.fingerprint
        there = build(name, **changes).adjust(before)
        assert build(name).adjust(there).fingerprint == before.derive().fingerprint == fingerprint


def test_every_method_that_names_online_settings_is_tested_with_all_of_them():
    online = {name: METHODS[name].online for name in METHODS}
    assert all(found <= set(METHODS[name].model_fields) for name, found in online.items())
    assert {name: set(online[name]) for name in CHANGES} == {name: set(changes) for name, changes in CHANGES.items()}
