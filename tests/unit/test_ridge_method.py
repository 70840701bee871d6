"""dspa_ridge and the scores of DSPA, end to end on tiny random models."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dspa.audit.audit import AuditSettings
from dspa.audit.command import audit_command
from dspa.map.ridge import RidgeMap
from dspa.method import DSPA
from dspa.perf.ridge import RidgeOptions, dense_fit, draw_rows, measure_ridge
from dspa.ridge_method import DSPARidge
from harness.cli import plan
from harness.cli.app import app
from harness.compute.rates import Rates
from harness.data.refs import BaseShape
from harness.data.triples import Budget, Triple, conversation
from harness.experiment.fitting import fit
from harness.experiment.forecast import Forecaster
from harness.experiment.run import prepare
from harness.model.aligned import AlignedModel
from harness.model.artifact import read_description

PROMPTS = [conversation(text) for text in ("w1 w2 w3", "w30", "w7 w8 w9 w10 w11 w12 w13 w5 w5", "w20 w21")]
SANDBOX = Path(__file__).parents[2] / "tasks" / "suites" / "sandbox.yaml"
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


def test_a_plan_says_what_the_prompts_leave_unexplained_or_what_it_would_take(monkeypatch, tmp_path):
    prepared = prepare(SANDBOX, tmp_path / "run", ["budgets=[6, 12]"])
    forecaster = Forecaster(prepared.suite.file.base)
    variants = {"dspa_paper, dspa, dspa_mean": "conversation", "dspa_last_turn, dspa_ridge": "last_turn"}
    for names, line in zip(variants, plan._previews(prepared, forecaster), strict=True):  # one for each condition
        said = re.fullmatch(rf"{names}: unexplained_share ([\d.]+) on 12 triples \((.+)\)", line)
        assert said and 0 < float(said[1]) < 2 and said[2] == DSPA.diagnostics["unexplained_share"]
    monkeypatch.setattr(plan, "PREVIEW_FLOPS", 1)
    for names, line in zip(variants, plan._previews(prepared, forecaster), strict=True):
        assert re.fullmatch(f"{names}: what a fit prints .* was not measured, it takes .* FLOPs", line)
    assert not (tmp_path / "run").exists()


def test_the_command_fit_prints_what_the_fit_found_out(tmp_path):
    assets = SANDBOX.parents[1] / "sandbox" / "assets"
    files = {"--base": assets / "model", "--triples": assets / "triples.jsonl", "--out": tmp_path / "artifact"}
    saes = [f"{role}_sae.path={assets / f'sae_{name}'}" for role, name in (("input", "early"), ("output", "late"))]
    asked = ["fit", "dspa_ridge", "--budget", "8", *(f"--param={sae}" for sae in saes)]
    result = CliRunner().invoke(app, [*asked, *(str(part) for pair in files.items() for part in pair)])
    assert result.exit_code == 0, result.output
    for figure in ("unexplained_share", "ridge_lambda", "rank_error"):
        assert re.search(rf"^{figure} [\d.]+: {re.escape(DSPARidge.diagnostics[figure])}$", result.output, re.MULTILINE)


@pytest.mark.parametrize("dense", [True, False])
def test_perf_ridge_prints_figures_and_compares_where_the_dense_reference_fits(monkeypatch, dense):
    if not dense:
        monkeypatch.setattr("dspa.perf.ridge._DENSE_NUMBERS", 1)
    options = RidgeOptions(triples=30, width=128, active=20, rank=8, rounds=2, queries=3)
    (section,) = measure_ridge(options, tell=lambda _: None)
    figures = {figure.what: figure.value for figure in section.figures}
    assert figures["RidgeMap.fit: executed"] <= figures["RidgeMap.fit: predicted at most"]
    assert {"RidgeMap.fit", "size of the map", "query, shipped factors"} <= figures.keys()
    assert len(section.lines) == (4 if dense else 1)


def test_the_dense_reference_of_perf_ridge_computes_the_same():
    options = RidgeOptions(triples=40, width=128, active=20, rank=None, queries=1)
    prompt, difference = (draw_rows(options, torch.Generator().manual_seed(s), signed=bool(s)) for s in (0, 1))
    ridge, found, _ = RidgeMap.fit(prompt, difference)
    units = (prompt.dense() > 0).float()
    units /= units.sum(1, keepdim=True).sqrt()
    penalty, weights = dense_fit(units, difference.dense())
    assert penalty == found.penalty
    expected = difference.mean() + units @ units.t() @ weights
    ours = ridge.scores(torch.zeros(40, 0, dtype=torch.long), prompt.dense())
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
