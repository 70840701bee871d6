"""dspa_ridge and the scores of DSPA, end to end on tiny random models."""

import json

import pytest

from dspa.audit.audit import AuditSettings
from dspa.audit.command import audit_command
from dspa.method import DSPA
from dspa.ridge_method import DSPARidge
from harness.compute.rates import Rates
from harness.data.refs import BaseShape
from harness.data.triples import Budget, Triple, conversation
from harness.experiment.cell import fit
from harness.model.aligned import AlignedModel
from harness.model.artifact import read_description

PROMPTS = [conversation(text) for text in ("w1 w2 w3", "w30", "w7 w8 w9 w10 w11 w12 w13 w5 w5", "w20 w21")]
SCORES = {"rows": DSPA, "mean": DSPA, "ridge": DSPARidge}


@pytest.fixture(scope="module")
def base(tiny_base):
    return tiny_base("gemma2")


def method_of(sae_refs, scores: str, **params) -> DSPA:
    own = {} if scores == "ridge" else {"scores": scores, "condition": "last_turn"}
    return SCORES[scores](input_sae=sae_refs[0], output_sae=sae_refs[1], **own | {"alpha": 1.5, "k_diff": 6} | params)


def aligned_by(base, triples, method: DSPA) -> AlignedModel:
    return fit(method, base, Budget(tuple(triples), 0), 0)


def figures_of(aligned: AlignedModel) -> dict[str, float]:
    """What steering the prompts noted, with what the fit found out."""
    batches = aligned.generate_batches(PROMPTS, max_new_tokens=6)
    return aligned.intervention.figures([batch.tally for batch in batches])


@pytest.mark.parametrize("scores", SCORES)
def test_a_saved_artifact_comes_back_with_its_map_and_answers_alike(base, triples, sae_refs, scores, tmp_path):
    aligned = aligned_by(base, triples, method_of(sae_refs, scores))
    aligned.save(tmp_path / "artifact")
    again = AlignedModel.load(tmp_path / "artifact", base=base.base)
    assert type(again.intervention.condition_map) is type(aligned.intervention.condition_map)
    assert again.fingerprint == aligned.fingerprint
    answers, expected = ([a.text for a in m.generate(PROMPTS, max_new_tokens=6)] for m in (again, aligned))
    assert answers == expected
    assert again.intervention.figures([]) == aligned.intervention.figures([]) != {}


def test_the_method_has_a_name_of_its_own_and_conditions_on_the_last_turn(base, triples, sae_refs, tmp_path):
    aligned = aligned_by(base, triples, method_of(sae_refs, "ridge"))
    aligned.save(tmp_path / "artifact")
    description = read_description(tmp_path / "artifact")
    assert description["method"] == description["bill"]["method"] == "dspa_ridge"
    assert aligned.params["condition"] == aligned.intervention.condition_on == "last_turn"
    assert description["bill"]["paper_flops"] is None


def test_every_fit_says_what_the_prompts_leave_unexplained_whatever_its_scores(base, triples, sae_refs):
    found = {s: aligned_by(base, triples, method_of(sae_refs, s)).intervention.figures([]) for s in SCORES}
    assert len({figures["unexplained_share"] for figures in found.values()}) == 1
    assert found["rows"].keys() == found["mean"].keys() == {"unexplained_share"}
    assert found["ridge"].keys() == {"unexplained_share", "ridge_lambda", "rank_error"} <= DSPARidge.diagnostics.keys()


def test_what_is_known_before_the_fit_is_what_the_fit_finds(base, triples, sae_refs):
    rates = Rates(base.model.config)
    for scores in SCORES:
        method = method_of(sae_refs, scores)
        preview, predicted = method.preview(base, triples, rates), method.predict(base, triples, rates)
        aligned = aligned_by(base, triples, method)
        assert preview.flops == predicted["features"]
        assert preview.measure(base)["unexplained_share"] == aligned.intervention.figures([])["unexplained_share"]


def test_the_diagnostic_is_not_billed_and_the_ridge_is(base, triples, sae_refs):
    rates = Rates(base.model.config)
    bills = {s: aligned_by(base, triples, method_of(sae_refs, s)).bill["stages"] for s in SCORES}
    for scores, stages in bills.items():
        predicted = method_of(sae_refs, scores).predict(base, triples, rates)
        features, of_map = (stage["executed_flops"] for stage in stages)
        assert [stage["name"] for stage in stages] == ["features", "map"]
        assert features == predicted["features"] and of_map <= predicted["map"]
    assert bills["mean"][1]["executed_flops"] == 0 < 9 * len(triples) ** 3 < bills["ridge"][1]["executed_flops"]


def test_the_mean_edits_one_set_for_all_prompts_and_ridge_does_not(base, triples, sae_refs):
    mean, ridge = (figures_of(aligned_by(base, triples, method_of(sae_refs, s))) for s in ("mean", "ridge"))
    assert (mean["jaccard"], mean["cosine_to_global"]) == (1, pytest.approx(1))
    assert ridge["jaccard"] < 1 and ridge["cosine_to_global"] < mean["cosine_to_global"]
    for figures in (mean, ridge):
        assert figures["edited_share"] > 0 and not {"median_support", "sure_share"} & figures.keys()


def test_swapped_preferences_augment_what_was_ablated(base, triples, sae_refs):
    swapped = [Triple(t.prompt, t.rejected, t.chosen) for t in triples]
    ours = aligned_by(base, triples, method_of(sae_refs, "ridge", mode="ablate")).intervention
    theirs = aligned_by(base, swapped, method_of(sae_refs, "ridge", mode="augment")).intervention
    density = (ours.condition_map.inner.new_ones(1, ours.condition_map.d_in)).cumsum(1) % 3
    gates = density.new_zeros(1, 0).long()
    assert (ours.condition_map.scores(gates, density) == -theirs.condition_map.scores(gates, density)).all()


@pytest.mark.parametrize(
    ("scores", "params"),
    [
        ("ridge", {"gate": "strict"}),
        ("ridge", {"k_prompt": 8}),
        ("mean", {"percentile": 50.0}),
        ("ridge", {"truncate": None}),
        ("mean", {"sure_only": True}),
        ("rows", {"rank": 16}),
        ("mean", {"rank": None}),
    ],
)
def test_an_option_that_the_scores_do_not_read_is_refused(base, sae_refs, scores, params):
    (name, value), config = next(iter(params.items())), base.model.config
    shape = BaseShape("tiny", config.num_hidden_layers, config.hidden_size)
    with pytest.raises(ValueError, match=f"{name}: {value} has no effect with scores: {scores}; only"):
        method_of(sae_refs, scores, **params).check(shape)
    method_of(sae_refs, scores).check(shape)


def test_dspa_ridge_has_no_other_scores(sae_refs):
    with pytest.raises(ValueError, match="scores"):
        DSPARidge(input_sae=sae_refs[0], output_sae=sae_refs[1], scores="mean")


@pytest.mark.parametrize("scores", ["ridge", "mean"])
def test_the_audit_reads_maps_without_gates(base, triples, sae_refs, scores, tmp_path):
    aligned_by(base, triples, method_of(sae_refs, scores)).save(tmp_path / "artifact")
    rows = [{"prompt": list(t.prompt), "chosen": t.chosen, "rejected": t.rejected} for t in triples]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = AuditSettings(top=4, snippets=2, examples=2, generate=2, max_new_tokens=4)
    options = {"judge_url": None, "judge_model": None, "judge_key": "NONE", "device": "cpu"}
    assert audit_command(tmp_path / "artifact", tmp_path / "texts.jsonl", tmp_path / "out", settings, **options) == 0
    page = (tmp_path / "out" / "audit.md").read_text()
    assert "unexplained\\_share" in page and "ranked by the mean difference" in page and "N\\_i" not in page
    found = json.loads((tmp_path / "out" / "features.json").read_text())
    assert all(example["gates"] == [] and example["selected"] for example in found["examples"])
