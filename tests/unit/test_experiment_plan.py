"""The plan: which cells there are, that all variants see the same triples, and that seeds depend on names alone."""

from pathlib import Path

import pytest

from harness.data.triples import load_triples
from harness.experiment.plan import cell_triples, derive_seed, grown, make_plan
from harness.experiment.suite import load_suite
from harness.run_folder import Plan
from harness.run_folder.plan import PlannedCell
from tests.toys import write_suite

RUN = Path("runs/toys")


@pytest.fixture
def load(tmp_path, tiny_folders):
    path = write_suite(tmp_path, tiny_folders["llama"])
    return lambda *overrides: load_suite(path, overrides)


def plan(suite) -> tuple[PlannedCell, ...]:
    return make_plan(suite, RUN).cells


def test_a_variant_has_a_cell_per_budget_and_seed_one_without_triples_per_seed_and_sweeps_one_a_point(load):
    assert {cell.name for cell in plan(load())} == {
        "base__n0__s0",
        "base__n0__s1",
        "noise__n4__s0",
        "noise__n4__s1",
        "noise__n8__s0",
        "noise__n8__s1",
        "noise@scale=0.1__n8__s0",
        "noise@scale=0.3__n8__s0",
    }


def test_the_largest_budgets_come_first(load):
    budgets = [cell.budget for cell in plan(load("budgets=[2, 8, 4]"))]
    assert budgets == sorted(budgets, reverse=True)


def test_a_sweep_over_two_parameters_is_their_grid(load):
    cells = plan(load("variants.noise.sweep={scale: [0.1, 1e-3], shape: [flat, round]}"))
    points = {cell.name: dict(cell.sweep) for cell in cells if cell.sweep}
    assert points["noise@scale=0.001,shape=round__n8__s0"] == {"scale": 0.001, "shape": "round"}
    assert len(points) == 4


def test_swept_values_that_would_share_a_folder_are_refused(load, tiny_folders):
    paths = [f"{{path: {tiny_folders['input']}}}"] * 2
    saes = f"saes={{a/b: {paths[0]}, a-b: {paths[1]}}}"
    with pytest.raises(ValueError, match="two swept values would both be called 'noise@sae=a-b__n8__s0'"):
        plan(load(saes, "variants.noise.sweep={sae: [a/b, a-b]}"))


def test_a_cell_knows_all_its_hyper_parameters_with_saes_by_their_name(load, tiny_folders):
    suite = load(f"saes={{early: {{path: {tiny_folders['input']}}}}}", "variants.noise.params.sae=early")
    cells = {cell.name: cell for cell in plan(suite)}
    assert cells["noise@scale=0.3__n8__s0"].model_dump() == {
        "name": "noise@scale=0.3__n8__s0",
        "variant": "noise",
        "label": "noise",
        "method": "toy_noise",
        "budget": 8,
        "seed": 0,
        "uses_triples": True,
        "sweep": {"scale": 0.3},
        "params": {"scale": 0.3, "sae": "early", "layer": 0, "shape": "flat", "stop_until": ""},
    }
    assert cells["noise__n8__s0"].sweep is None


def test_all_variants_see_the_same_triples_in_the_same_order_and_budgets_are_nested(load):
    suite = load("variants.base.method=toy_noise")
    triples = load_triples(suite.file.triples.path)
    cells = {cell.name: cell for cell in plan(suite)}

    def seen(name: str) -> list[str]:
        return [t.key for t in cell_triples(suite, cells[name], triples).triples]

    assert seen("base__n8__s1") == seen("noise__n8__s1")
    assert seen("noise__n8__s0") == seen("noise@scale=0.1__n8__s0")
    assert seen("noise__n4__s0") == seen("noise__n8__s0")[:4]
    assert seen("noise__n8__s0") != seen("noise__n8__s1")


def test_seeds_are_those_of_the_names_and_of_nothing_else():
    import hashlib

    digest = hashlib.sha256(b"5\x1fnoise__n8__s0\x1ffit").digest()
    assert derive_seed(5, "noise__n8__s0", "fit") == int.from_bytes(digest[:4], "big") // 2
    seeds = {derive_seed(s, c, p) for s in (0, 1) for c in ("a", "b", "ab") for p in ("fit", "mt_bench")}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_bill_as_budget_adds_cells_and_changes_no_other(load):
    before, after = plan(load()), plan(load("flops_budgets=[1e9, 2.5e10]"))
    added = {cell.name for cell in after} - {cell.name for cell in before}
    assert added == {f"noise__{bill}flops__s{seed}" for bill in ("1e+9", "2.5e+10") for seed in (0, 1)}
    assert tuple(cell for cell in after if cell.name not in added) == before
    limits = {cell.name: cell.flops_limit for cell in after}
    assert (limits["noise__2.5e+10flops__s0"], limits["noise__n8__s0"]) == (25 * 10**9, None)


def test_without_numbers_of_triples_sweeps_go_to_the_largest_bill(load):
    names = {cell.name for cell in plan(load("budgets=[]", "flops_budgets=[1e9, 2e9]"))}
    assert {name for name in names if "@" in name} == {
        "noise@scale=0.1__2e+9flops__s0",
        "noise@scale=0.3__2e+9flops__s0",
    }


def test_under_a_bill_a_cell_may_see_all_triples_in_the_order_of_the_smaller_budgets(load):
    suite = load("flops_budgets=[1e9]")
    triples = load_triples(suite.file.triples.path)
    cells = {cell.name: cell for cell in plan(suite)}
    seen = {
        name: cell_triples(suite, cells[name], triples).triples for name in ("noise__n8__s1", "noise__1e+9flops__s1")
    }
    assert len(seen["noise__1e+9flops__s1"]) == 12
    assert seen["noise__1e+9flops__s1"][:8] == seen["noise__n8__s1"]


def test_saes_in_a_list_keep_their_names_too(tmp_path, tiny_folders):
    text = write_suite(tmp_path, tiny_folders["llama"])
    saes = f"saes={{early: {{path: {tiny_folders['input']}}}, late: {{path: {tiny_folders['output']}}}}}"
    variants = "variants=[{name: base, method: base}, {name: s, method: sails, params: {saes: [early, late]}}]"
    cells = plan(load_suite(text, [saes, variants]))
    assert next(cell for cell in cells if cell.variant == "s").params["saes"] == ["early", "late"]


def test_a_cells_method_is_built_from_the_plan_as_the_suite_built_it(load, tiny_folders):
    sae = f"{{path: {tiny_folders['input']}}}"
    suite = load(f"saes={{early: {sae}}}", "variants.noise.params.sae=early", "variants.noise.sweep={layer: [1, 2]}")
    other = load(f"variants.noise.params.sae={sae}")
    for found, expected in ((suite, [0, 1, 2]), (other, [0])):
        read = Plan.model_validate_json(make_plan(found, RUN).model_dump_json())
        cells = {cell.point: cell for cell in read.cells if cell.variant == "noise"}
        methods = {point: found.method_of(cell, RUN) for point, cell in cells.items()}
        assert methods["noise"] == found.variants[1].method
        assert methods["noise"].sae.path == str(tiny_folders["input"])
        assert sorted({method.layer for method in methods.values()}) == expected
    assert cells["noise"].params["sae"]["path"].startswith("../"), "relative to the run folder"


def test_a_plan_says_what_a_report_needs_to_know(load):
    found = make_plan(load("flops_budgets=[1e9]", "report.baseline=noise", "variants.base.label=Base"), RUN)
    assert (found.name, found.baseline, found.budgets, found.seeds) == ("toys", "noise", ("1e+9flops", 4, 8), 2)
    assert (found.triple_budgets, found.labels) == ([4, 8], {"base": "Base", "noise": "noise"})
    assert [(v.name, v.method, v.uses_triples) for v in found.variants] == [
        ("base", "toy_base", False),
        ("noise", "toy_noise", True),
    ]
    assert [v.settings for v in found.variants] == [{}, {"scale": 0.2}]
    (benchmark,) = found.benchmarks
    assert (benchmark.name, benchmark.files, benchmark.judged_twice) == ("toy_bench", "toy_bench", False)
    assert {name: (m.title, m.unit) for name, m in found.metrics.items()} == {"evenness": ("Evenness", "%")}
    assert found.diagnostics == {"wobble": "how much the toy wobbles"}


def test_a_grown_plan_keeps_the_cells_that_were_begun(load, tmp_path):
    before = make_plan(load("budgets=[4]"), tmp_path)
    after = make_plan(load(), tmp_path)
    (tmp_path / "cells" / "noise@scale=0.1__n4__s0").mkdir(parents=True)
    names = [cell.name for cell in grown(after, before, tmp_path).cells]
    assert names == [*(cell.name for cell in after.cells), "noise@scale=0.1__n4__s0"]
    assert grown(after, None, tmp_path) == grown(after, after, tmp_path) == after


def test_tables_list_cells_by_variant_budget_seed_and_swept_value(load):
    sweep = "variants.noise.sweep={scale: [0.3, 0.1, 10]}"
    found = make_plan(load("variants.base.method=toy_noise", sweep, "budgets=[8, 4]"), RUN)
    names = [cell.name for cell in found.in_table_order]
    assert names[:4] == ["base__n4__s0", "base__n4__s1", "base__n8__s0", "base__n8__s1"]
    assert names[-5:] == ["noise__n8__s0", *(f"noise@scale={x}__n8__s0" for x in (0.1, 0.3, 10)), "noise__n8__s1"]
