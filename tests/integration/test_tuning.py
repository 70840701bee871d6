"""Tuning inside whole runs: what it sees, what it costs, who wins, and that an interruption changes nothing."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.data.triples import load_triples, triples_hash
from harness.experiment import search, space, tuning
from harness.experiment.cell import CellContext, run_cell
from harness.experiment.plan import cell_triples
from harness.experiment.run import prepare, run_suite
from harness.experiment.suite import load_suite
from harness.experiment.tuning import parts_of
from harness.run_folder import RunFolder
from harness.run_folder import tuning as tuning_files
from reports.render import write_report
from tests.toys import NoProgress, outcome, write_suite
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
CAA = {"method": "caa", "params": {"layer": 1}}
VARIANTS = [
    {"name": "base", "method": "toy_base"},
    {
        "name": "caa",
        "method": "caa",
        "params": {"layer": 1, "scale": 3.0},
        "tune": {"scale": {"low": 0.1, "high": 4.0}, "layer": [1, 2]},
        "sweep": {"scale": [0.5]},
    },
    {"name": "noise", "method": "toy_noise", "params": {"scale": 0.3}, "trials": 3, "tune": {"scale": [0.1, 0.05]}},
    {
        "name": "swapped",
        "method": "caa",
        "params": {"layer": 1},
        "preferences": "swapped",
        "tune": {"scale": [0.5, 1.0]},
    },
    {"name": "shuffled", "method": "caa", "params": {"layer": 1}, "preferences": "shuffled"},
]


@pytest.fixture(scope="module")
def suite_path(tmp_path_factory, tiny_folders) -> Path:
    settings = {"seeds": 1, "budgets": [8], "tune": {"trials": 5, "floor": 0.5}, "variants": VARIANTS}
    return write_suite(tmp_path_factory.mktemp("suite"), tiny_folders["llama"], **settings)


@pytest.fixture(scope="module")
def finished(suite_path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run_suite(prepare(suite_path, out), NoProgress()) == {}
    return out


@pytest.fixture(scope="module")
def context(finished, tmp_path_factory) -> CellContext:
    """Of a run whose cells are not begun; the model is read once."""
    out = tmp_path_factory.mktemp("runs") / "new"
    shutil.copytree(finished, out, ignore=lambda _, names: {"report"} & set(names))
    shutil.rmtree(out / "cells")
    return CellContext.open(out)


def tuned(run: Path, cell: str):
    return RunFolder(run).cell(cell).tuning


def test_every_tuned_cell_has_its_trials_and_the_artifact_is_the_winners(finished):
    for name, n in (("caa__n8__s0", 5), ("noise__n8__s0", 3), ("swapped__n8__s0", 2)):
        found = tuned(finished, name)
        assert [trial.trial for trial in found.trials] == list(range(1, n + 1))
        best = found.best
        assert best is not None
        scores = {t.trial: t.score for t in found.trials if t.passed}
        assert best.fallback == (not scores)
        if scores:
            assert best.winner == min(t for t, score in scores.items() if score == max(scores.values()))
        description = json.loads((RunFolder(finished).cell(name).artifact / "aligned.json").read_text())
        assert description["params"].items() >= best.params.items()
        assert description["budget"]["n"] == 8, "the winner is fitted on the whole budget"
        assert (best.n_fit, best.n_validation) == (6, 2)
        bill = json.loads((RunFolder(finished).cell(name).path / "compute.json").read_text())
        spent = sum(trial.executed_flops for trial in found.trials)
        assert best.executed_flops > spent > bill["executed_flops"], "the fit's own bill has nothing of the tuning"
    own = [tuned(finished, name).trials[0].params for name in ("caa__n8__s0", "noise__n8__s0")]
    assert own == [{"scale": 3.0, "layer": 1}, {"scale": 0.3}]


def test_sweeps_and_variants_without_tune_are_not_tuned(finished):
    for name in ("base__n0__s0", "caa@scale=0.5__n8__s0", "shuffled__n8__s0"):
        assert not tuned(finished, name).path.exists()


def test_trials_that_differ_online_alone_share_a_fit(finished):
    trials = tuned(finished, "caa__n8__s0").trials
    layers = {trial.params["layer"] for trial in trials}
    assert sum(trial.shares is None for trial in trials) == len(layers) == sum(trial.fit_flops > 0 for trial in trials)
    for trial in trials:
        assert trial.shares is None or trials[trial.shares - 1].params["layer"] == trial.params["layer"]
        assert trial.score_flops > 0
    assert all(trial.shares is None for trial in tuned(finished, "noise__n8__s0").trials)


def test_what_falls_below_the_floor_cannot_win(finished):
    for name in ("caa__n8__s0", "noise__n8__s0"):
        found = tuned(finished, name)
        assert found.best is not None
        for trial in found.trials:
            assert trial.chosen is not None
            assert trial.passed == (trial.chosen >= found.best.base_chosen - 0.5)
        assert any(not trial.passed for trial in found.trials), "otherwise this tests nothing"
        assert found.trials[found.best.winner - 1].passed != found.best.fallback
    assert tuned(finished, "caa__n8__s0").best.fallback is False


def test_where_none_passes_the_own_values_stand_and_without_a_floor_all_may_win(suite_path, tmp_path):
    only = f"variants={json.dumps([VARIANTS[0], {**VARIANTS[2], 'tune': {'scale': [2.0, 4.0]}}])}"
    run_suite(prepare(suite_path, tmp_path / "a", [only, "variants.noise.params.scale=1.0"]), NoProgress())
    best = tuned(tmp_path / "a", "noise__n8__s0").best
    assert best is not None and (best.winner, best.fallback, best.params) == (1, True, {"scale": 1.0})
    run_suite(
        prepare(suite_path, tmp_path / "b", [only, "variants.noise.params.scale=1.0", "tune.floor=null"]), NoProgress()
    )
    best = tuned(tmp_path / "b", "noise__n8__s0").best
    trials = tuned(tmp_path / "b", "noise__n8__s0").trials
    assert best is not None and not best.fallback
    assert trials[best.winner - 1].score == max(trial.score or -9 for trial in trials)


def test_trials_see_the_cells_own_triples_alone_and_the_same_parts_for_every_method(finished, monkeypatch):
    suite = load_suite(finished / "suite.yaml")
    triples = load_triples(suite.file.triples.path)
    cells = {cell.name: cell for cell in RunFolder(finished).plan.cells}
    seen = {}
    for name in ("caa__n8__s0", "noise__n8__s0", "swapped__n8__s0"):
        budget = cell_triples(suite, cells[name], triples)
        fit_part, validation = parts_of(suite, cells[name], budget)
        assert {t.key for t in (*fit_part, *validation)} == {t.key for t in budget.triples}
        assert not {json.dumps(t.prompt) for t in fit_part} & {json.dumps(t.prompt) for t in validation}
        seen[name] = [json.dumps(t.prompt) for t in fit_part]
    assert len({tuple(prompts) for prompts in seen.values()}) == 1
    best = [tuned(finished, name).best for name in ("caa__n8__s0", "noise__n8__s0", "swapped__n8__s0")]
    assert best[0] is not None and best[1] is not None and best[2] is not None
    assert best[0].split_hash == best[1].split_hash != best[2].split_hash, "a control's parts say other preferences"


def test_an_evaluation_prompt_among_the_validation_prompts_is_refused(context, tmp_path):
    """Beside the refusal before any work, which a benchmark or a triples file that changed since would pass."""
    cell = context.cells["caa__n8__s0"]
    budget = cell_triples(context.suite, cell, context.triples)
    asked = parts_of(context.suite, cell, budget)[1][0].prompt[-1]["content"]
    context.__dict__["evaluation_prompts"] = ["w0 w30", asked.upper()]
    try:
        run_cell(context, cell, lambda *_: None)
        state = context.folder.cell(cell.name).state
        assert state is not None and state.error is not None
        assert "1 evaluation prompts are among the validation prompts" in state.error
        assert not context.folder.cell(cell.name).tuning.trials, "nothing was tried"
    finally:
        del context.__dict__["evaluation_prompts"]
        shutil.rmtree(context.folder.cell(cell.name).path)


def test_the_triples_of_an_evaluation_are_refused_before_any_work(suite_path, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('"W3  w4"\n')
    with pytest.raises(ValueError, match="1 evaluation prompts of toy_bench also occur among the training prompts"):
        prepare(suite_path, tmp_path / "run", [f"benchmarks.0.questions={questions}"])


def test_controls_have_the_same_prompts_and_other_preferences(finished):
    states = {name: RunFolder(finished).cell(f"{name}__n8__s0").state for name in ("caa", "swapped", "shuffled")}
    assert len({state and state.triples_hash for state in states.values()}) == 3
    suite = load_suite(finished / "suite.yaml")
    triples = load_triples(suite.file.triples.path)
    cells = {cell.name: cell for cell in RunFolder(finished).plan.cells}
    given, swapped, shuffled = (
        cell_triples(suite, cells[f"{name}__n8__s0"], triples).triples for name in ("caa", "swapped", "shuffled")
    )
    assert [(t.prompt, t.rejected, t.chosen) for t in given] == [(t.prompt, t.chosen, t.rejected) for t in swapped]
    assert sum(a == b for a, b in zip(given, shuffled, strict=True)) == 4
    assert states["swapped"] is not None
    assert states["swapped"].triples_hash == triples_hash(swapped, in_order=True)


def interrupted(context: CellContext, name: str, moment: int) -> int:
    """Run the cell and raise at the ``moment``-th line executed in the modules of tuning; the lines that were left."""
    modules = {module.__file__ for module in (tuning, search, space, tuning_files)}
    left = [moment]

    class Killed(BaseException):
        pass

    def trace(frame, event, _):
        if frame.f_code.co_filename not in modules:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise Killed
        return trace

    sys.settrace(trace)
    try:
        run_cell(context, context.cells[name], lambda *_: None)
    except Killed:
        pass
    finally:
        sys.settrace(None)
    return left[0]


def test_interrupted_at_20_random_moments_it_ends_as_it_does_without(context, finished):
    """In one process: every line of the tuning is as likely to be the last."""
    name, draw = "caa__n8__s0", random.Random(5)
    home = context.folder.cell(name).path
    wanted = {key: value for key, value in outcome(finished).items() if f"cells/{name}/" in key}
    for part in ("tuning/trials.jsonl", "tuning/best.json"):
        assert f"cells/{name}/{part}" in wanted
    lines = 10**9 - interrupted(context, name, 10**9)
    shutil.rmtree(home)
    reached = set()
    for moment in [1, *(draw.randrange(2, lines) for _ in range(18)), lines]:
        context.base_scores.clear()  # as in a new process
        assert interrupted(context, name, moment) == 0
        reached.add(len(context.folder.cell(name).tuning.trials))
        assert not context.folder.cell(name).artifact.exists()
        run_cell(context, context.cells[name], lambda *_: None)
        found = {key: value for key, value in outcome(context.folder.path).items() if f"cells/{name}/" in key}
        assert found == wanted, f"interrupted at line {moment}"
        shutil.rmtree(home)
    assert len(reached) > 2, "the moments are too much alike"


def test_a_killed_run_ends_as_one_that_was_not(finished, suite_path, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", suite_path, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = out / "cells" / "caa__n8__s0" / "tuning" / "trials.jsonl"
    wait_until(lambda: found.exists() and found.read_bytes().count(b"\n") >= 2, process)
    process.kill()
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcome(out) == outcome(finished)


def test_what_is_refused_is_a_failed_trial_and_a_tuning_of_such_alone_fails_the_cell(suite_path, tmp_path):
    repe = {"name": "repe", "method": "repe", "params": {"layer": 1, "directions": 2}, "tune": {"directions": [7, 30]}}
    variants = [f"variants={json.dumps([VARIANTS[0], repe])}"]
    assert run_suite(prepare(suite_path, tmp_path / "a", variants), NoProgress()) == {}
    trials = tuned(tmp_path / "a", "repe__n8__s0").trials
    assert [trial.error is None for trial in trials] == [True, False, False]
    assert all("6 triples span fewer than" in (trial.error or "") for trial in trials[1:])
    assert [(t.score, t.passed, t.fit_flops) for t in trials[1:]] == [(None, False, 0)] * 2
    variants.append("variants.repe.params.directions=9")
    failures = run_suite(prepare(suite_path, tmp_path / "b", variants), NoProgress())
    assert "all 3 trials of the tuning failed, first: 6 triples span fewer than 9" in failures["repe__n8__s0"][0]
    assert not tuned(tmp_path / "b", "repe__n8__s0").trials, "the next try begins anew"


@pytest.mark.parametrize("search", ["grid", "random"])
def test_the_judge_may_score_trials(search, suite_path, tmp_path):
    overrides = [
        "plugins=[tests.toys, tests.judged_toys]",
        "judge={kind: toy_rule}",
        f"tune={{score: judge, max_new_tokens: 6, search: {search}, floor: null}}",
        f"variants={json.dumps([VARIANTS[0], {**VARIANTS[2], 'trials': 3}])}",
    ]
    assert run_suite(prepare(suite_path, tmp_path / "run", overrides), NoProgress()) == {}
    trials = tuned(tmp_path / "run", "noise__n8__s0").trials
    assert [trial.params["scale"] for trial in trials][:1] == [0.3]
    assert {trial.params["scale"] for trial in trials} == {0.3, 0.1, 0.05}
    assert all(1 <= (trial.score or 0) <= 10 for trial in trials)
    assert {trial.chosen for trial in trials} == {None} and all(trial.passed for trial in trials), "nothing asks for it"


def test_a_judge_that_is_away_fails_the_cell_and_is_asked_again(suite_path, tmp_path):
    switch = tmp_path / "away"
    switch.touch()
    overrides = [
        "plugins=[tests.toys, tests.judged_toys]",
        f"judge={{kind: toy_rule, fail_while: {switch}}}",
        "tune={score: judge, max_new_tokens: 6}",
        f"variants={json.dumps([VARIANTS[0], VARIANTS[2]])}",
    ]
    failures = run_suite(prepare(suite_path, tmp_path / "run", overrides), NoProgress())
    assert "no rating of 1 of 2 answers, first: the toy judge was away" in failures["noise__n8__s0"][0]
    switch.unlink()
    assert run_suite(prepare(suite_path, tmp_path / "run", overrides), NoProgress()) == {}


def test_the_report_says_who_won_what_it_cost_and_which_variants_are_controls(finished):
    text = write_report(finished).read_text()
    assert "### Tuning" in text and "| tuning: FLOPs |" in text
    assert "the others come from Optuna's TPE sampler" in text
    assert (
        "**swapped is a control**: it was fitted on the same prompts and answers with chosen and rejected swapped."
        in text
    )
    assert "swapped in a random half of the triples." in text
    assert "not all variants saw the same triples" not in text
    best = tuned(finished, "caa__n8__s0").best
    assert best is not None
    winners = [json.loads(text) for text in pd.read_csv(finished / "report/tables/tuning.csv")["winners"]]
    assert best.params in [won["params"] for row in winners for won in row]
    rows = (finished / "report" / "tables" / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 + 3 + 2
    assert (finished / "report" / "tables" / "tuning.csv").read_text().count("\n") == 4


def test_a_dry_run_says_trials_fits_and_their_predicted_bill(suite_path, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from harness.cli import main; main()",
        "run",
        suite_path,
        "--out",
        tmp_path / "x",
        "--dry-run",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "tuning in each cell, before its fit" in done.stdout
    assert [line.split()[4:6] for line in done.stdout.splitlines() if line.strip().startswith("caa ")][-1] == ["5", "2"]
    assert "an estimate" in done.stdout
