"""How far a run is and what it says at its end: counts, the time that is left, the leaderboard, forecasts."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from harness.cli.progress import EVERY_SECONDS, Lines, Pace, duration
from harness.data.refs import ModelRef
from harness.experiment.forecast import Forecaster
from harness.experiment.outlook import Asked, asked, disk, most_money, product_rate
from harness.experiment.room import Room
from reports.leaderboard import leaderboard, report_at_the_end
from reports.run import read_run
from tasks.preference import Preference
from tests.unit.synthetic_run import write_run


def test_a_run_is_as_far_as_its_cells_and_the_answers_of_those_that_run():
    pace = Pace({"a": 30, "b": 10}, cells=4, now=100.0)
    assert pace.left(now=110.0) == ""
    assert pace.stage("x", "fit dpo", 0) is None
    assert pace.stage("x", "a", 20) == 30
    assert pace.done == pytest.approx(20 / 40 / 4)
    assert pace.left(now=110.0) == "about 70 s left"
    pace.stage("x", "a", 10)  # records of what was answered
    assert pace.done == pytest.approx(20 / 40 / 4)
    pace.end("x")
    assert pace.done == 0.25
    for cell in "yzw":
        pace.end(cell)
    assert (pace.done, pace.left(now=200.0)) == (1.0, "")


def test_cells_alone_count_where_nobody_knows_the_answers():
    pace = Pace({}, cells=2, now=0.0)
    pace.stage("x", "multiple_choice", 7)
    assert pace.done == 0
    pace.end("x")
    assert pace.left(now=7200.0) == "about 2.0 h left"


def test_lines_say_how_a_stage_begins_and_once_a_minute_how_far_it_is(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("harness.cli.progress.time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    lines = Lines(None, Pace({"a": 30}, cells=1), console)  # type: ignore[arg-type]
    lines.stage("x", "fit, train, step 1 of 9, loss 0.7 [nats]", 1)
    for step in range(2, 5):
        now += EVERY_SECONDS / 2
        lines.stage("x", f"fit, train, step {step} of 9", step)
    lines.stage("x", "a", 0)
    lines.stage("x", "a", 12)
    now += EVERY_SECONDS
    lines.stage("x", "a", 20)
    said = [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert said == ["x: fit, train, step 3 of 9", "x: a, 30 answers", "x: a, 20 of 30 answers"]


def test_durations_are_no_more_exact_than_they_are():
    assert [duration(s) for s in (3.3, 89, 200, 6000)] == ["3 s", "89 s", "3 min", "1.7 h"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("leaderboard") / "run")


def test_the_leaderboard_has_quality_and_cost_of_every_variant_best_first(folder):
    run = read_run(folder)
    console = Console(file=io.StringIO(), width=250)
    console.print(leaderboard(run))
    lines = console.file.getvalue().splitlines()
    labels = list(run.plan.labels.values())
    rows = [line for line in lines if any(line.strip().startswith(label[:20]) for label in labels)]
    assert len(rows) == len(labels)
    assert "FLOPs of fit / tuning" in lines[2]
    first = [float(row.split("[")[0].split()[-1]) for row in rows if "[" in row]
    assert first == sorted(first, reverse=True)
    assert lines[0].strip() == f"{run.plan.name}, 300 triples, 3 seeds"
    narrow = Console(file=io.StringIO(), width=100)
    narrow.print(leaderboard(run))
    assert "[" not in narrow.file.getvalue()


def test_one_seed_is_one(folder):
    run = read_run(folder)
    console = Console(file=io.StringIO(), width=250)
    console.print(leaderboard(replace(run, cells=tuple(cell for cell in run.cells if cell.planned.seed == 0))))
    assert console.file.getvalue().splitlines()[0].strip().endswith("300 triples, 1 seed")


def test_a_report_hands_back_its_page_and_the_leaderboard(folder, monkeypatch):
    monkeypatch.setattr("reports.leaderboard.write_report", lambda run: run.folder / "report" / "report.md")
    made = report_at_the_end(folder)
    assert made.page == folder / "report" / "report.html"
    assert made.summary.full.row_count == len(read_run(folder).plan.labels)


def test_what_a_benchmark_asks_is_counted_beforehand(tiny_folders, tmp_path):
    (tmp_path / "triples.jsonl").write_text('{"prompt": "w1 w2", "chosen": "w3", "rejected": "w4 w5"}\n')
    ref = ModelRef(path=str(tiny_folders["llama"]))
    found = asked(Preference(triples=tmp_path / "triples.jsonl"), Room.of(ref), Forecaster(ref).rates)
    assert found is not None
    assert (found.answers, found.tokens, found.verdicts) == (0, 0, 0)
    assert found.flops > 0


def test_rates_and_disk_are_numbers_of_this_machine(tmp_path):
    import torch

    assert product_rate(32, dtype=torch.float32, device="cpu") > 10**6
    most, free = disk(tmp_path / "not" / "there", fits=3, weights=1000, asked_by={"a": Asked(1, 10, 0, 0, 0)}, cells=2)
    assert most == 3 * 1000 + 2 * (2000 + 80)
    assert free > 0


def test_money_is_counted_by_prices_where_a_judge_has_them():
    class Priced:
        price_in, price_out, max_tokens = 2.0, 10.0, 100

    assert most_money(Priced(), 10, 5000) == pytest.approx((5000 * 2 + 10 * 100 * 10) / 1e6)  # type: ignore[arg-type]
    assert most_money(object(), 10, 5000) is None  # type: ignore[arg-type]
