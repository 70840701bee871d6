"""Whole runs judged over HTTP: a server that answers, stammers, is ill or dies, runs that die; what is paid for."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from harness.cli.run import run_command
from harness.experiment.run import prepare, run_suite
from harness.judging.ledger import read_accounts
from reports.render import write_report
from reports.run import read_run
from tests.judge_server import Server, completion, serving
from tests.toys import NoProgress, write_suite
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
VERDICT = "[[6]]"
PER_CELL = 6 + 2 * 3 + 2 + 2  # MT-Bench turns, AlpacaEval pairs in both positions, harmful, harmless
CELLS = 2
PRICES = {"price_in": 100.0, "price_out": 1000.0}
COST = 7 * 1e-4 + 3 * 1e-3  # of one reply, by the server's token counts


def verdict(question: str) -> str:
    """A verdict in the form that is asked for."""
    if "[[A]]" in question:
        return "[[A]]"
    if "[[YES]]" in question:
        return "[[NO]]"
    return "Harm: [[2]]" if "Harm:" in question else VERDICT


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_folders) -> Path:
    """Two variants, three benchmarks that need a judge; the address of the judge is given by each test."""
    folder = tmp_path_factory.mktemp("judged")
    questions = [{"question_id": n, "category": "writing", "turns": [f"w{n} w1", f"w{n} w2"]} for n in (81, 82, 83)]
    (folder / "mt.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    references = [{"instruction": f"w{n} w9", "output": f"w{n}", "generator": "ref", "dataset": "d"} for n in range(3)]
    (folder / "references.json").write_text(json.dumps(references))
    for kind in ("harmful", "harmless"):
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps({"prompt": f"{kind} w{n}"}) + "\n" for n in range(2)))
    sampled = {"temperature": 1.0, "max_new_tokens": 6}
    return write_suite(
        folder,
        tiny_folders["llama"],
        budgets=[4],
        seeds=1,
        judge={"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "tiny/judge", "attempts": 2} | PRICES,
        benchmarks=[
            {"name": "mt_bench", "questions": "mt.jsonl", "temperatures": 1.0, "max_new_tokens": 6},
            {"name": "alpaca_eval", "references": "references.json", **sampled},
            {"name": "safety", "harmful": "harmful.jsonl", "harmless": "harmless.jsonl", **sampled},
        ],
        variants=[
            {"name": "base", "method": "toy_base"},
            {"name": "noise", "method": "toy_noise", "params": {"scale": 0.2}},
        ],
    )


def run(suite: Path, out: Path, url: str, *overrides: str):
    return run_suite(prepare(suite, out, [f"judge.base_url={url}", *overrides]), NoProgress())


def records(out: Path) -> list[dict]:
    paths = sorted(out.glob("cells/*/records/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def values(out: Path) -> list:
    return [(r["metric"], r["item"], r["value"], r["error"]) for r in records(out)]


def asked_twice(server: Server, *others: Server) -> dict[str, int]:
    """Questions that got more than one answer that had to be paid for."""
    counts = sum((other.answered for other in others), Counter(server.answered))
    return {question: count for question, count in counts.items() if count > 1}


@pytest.fixture(scope="module")
def well(suite, tmp_path_factory) -> Path:
    """(a) The server answers: a complete run."""
    out = tmp_path_factory.mktemp("well") / "run"
    with serving(reply=verdict) as server:
        assert run(suite, out, server.url) == {}
        assert asked_twice(server) == {}
        assert len(server.answered) <= CELLS * PER_CELL
        sent = len(server.answered)
        assert run(suite, out, server.url) == {}
        assert sum(server.seen.values()) == sent, "a complete run asks for nothing"
    return out


def test_a_judged_run_is_complete_and_its_report_shows_what_judging_took(well):
    assert all(record["error"] is None for record in records(well))
    (account,) = read_accounts(well / "judging").values()
    assert account.requests == CELLS * PER_CELL
    assert account.calls == account.answered == account.requests - account.reused
    assert account.cost == pytest.approx(account.calls * COST)
    text = write_report(well).read_text()
    assert read_run(well).complete
    assert "## Judging" in text and "tiny/judge (temperature 0)" in text
    (row,) = pd.read_csv(well / "report" / "tables" / "judging.csv").to_dict("records")
    assert row["judge"].startswith("tiny_judge-") and row["models"] == "m"
    assert (row["calls"], row["requests"], row["reused"]) == (account.calls, account.requests, account.reused)
    assert row["cost"] == pytest.approx(account.cost) and row["possible"] == 0
    assert f"| {account.requests} | {account.reused} | {account.calls} | {account.calls} | 0 |" in text


def test_settings_of_the_work_may_change_but_not_those_of_the_verdicts(well, suite):
    prepare(suite, well, ["judge.concurrency=1", "judge.max_cost=9", "judge.price_in=3", "judge.max_tokens=9"])
    for change in ("judge.model=other", "judge.temperature=0.5"):
        with pytest.raises(ValueError, match=r"suite\.judge\.(model|temperature)"):
            prepare(suite, well, [change])


def test_garbage_is_named_and_only_what_it_hit_is_asked_again(well, suite, tmp_path):
    """(b) The server answers garbage."""
    with serving(reply=lambda q: "I would rather not say" if "w82" in q else verdict(q)) as server:
        failures = run(suite, tmp_path / "run", server.url)
        assert set(failures) == {cell.name for cell in (tmp_path / "run" / "cells").iterdir()}
        assert all("mt_bench: 2 of 6 records failed" in reasons[0] for reasons in failures.values())
        failed = [r for r in records(tmp_path / "run") if r["error"]]
        assert {r["cluster"] for r in failed} == {"82"}
        assert all(r["raw"]["judgment"] == "I would rather not say" for r in failed)
        assert "has no rating" in failed[0]["error"]
        first = Counter(server.answered)
    with serving(reply=verdict) as mended:
        assert run(suite, tmp_path / "run", mended.url) == {}
        assert all("w82" in question for question in mended.answered)
        assert {q for q in first if "w82" in q} == set(mended.answered)
        assert asked_twice(mended) == {}
    assert values(tmp_path / "run") == values(well)


class Ill(Server):
    """(c) Some questions get 429, some 500, some no answer; others are slow to succeed."""

    def plan(self, words):
        if "w81 w2" in words:
            return 429, {"error": {"message": "too many requests"}}
        if "harmful w1" in words:
            return 500, {"error": {"message": "internal"}}
        if "w2 w9" in words:
            return "hang", {}
        if "w83 w1" in words and self.seen[words] == 1:
            return 503, {}
        return 200, completion(self.reply(words))


def test_what_an_ill_server_does_not_answer_is_named_and_the_rest_is_there(well, suite, tmp_path):
    out = tmp_path / "run"
    with serving(reply=verdict, kind=Ill) as server:
        assert len(run(suite, out, server.url, "judge.timeout=4", "judge.concurrency=16")) == CELLS
        expected = {"81:2": "RateLimitError", "harmful:2": "InternalServerError", "2": "APITimeoutError"}
        failed = [r for r in records(out) if r["error"]]
        assert {r["item"] for r in failed} == set(expected)
        assert all(expected[r["item"]] in r["error"] for r in failed)
        assert len(records(out)) - len(failed) == CELLS * (6 + 3 + 4 - 3)
        assert asked_twice(server) == {}
        first = Counter(server.answered)
        (account,) = read_accounts(out / "judging").values()
        assert account.refused and account.lost and account.possible > 0
        report = write_report(out).read_text()
        assert "RateLimitError" in report and "APITimeoutError" in report
    with serving(reply=verdict) as mended:
        assert run(suite, out, mended.url) == {}
        assert not +first & +mended.answered, "no verdict is paid for twice"
    assert values(out) == values(well)


def test_a_server_that_dies_midway_leaves_what_it_gave(well, suite, tmp_path):
    """(d) After 15 answers nobody is at the address any more."""
    out = tmp_path / "run"

    class Mortal(Server):
        def plan(self, words):
            dead = sum(self.seen.values()) > 15
            return ("drop", {}) if dead else (200, completion(self.reply(words)))

    with serving(reply=verdict, kind=Mortal) as server:
        failures = run(suite, out, server.url, "judge.concurrency=2")
        assert failures and sum(server.answered.values()) == 15
        assert all("APIConnectionError" in r["error"] for r in records(out) if r["error"])
        first = Counter(server.answered)
    with serving(reply=verdict) as another:
        assert run(suite, out, another.url) == {}
        assert not +first & +another.answered
        assert asked_twice(another) == {}
    assert values(out) == values(well)


def test_a_run_killed_midway_loses_no_verdict_that_came(well, suite, tmp_path):
    out = tmp_path / "run"

    class Stalls(Server):
        def plan(self, words):
            return ("hang", {}) if len(self.seen) > 9 else (200, completion(self.reply(words)))

    with serving(reply=verdict, kind=Stalls) as server:
        settings = [f"base_url={server.url}", "timeout=600", "concurrency=2"]
        arguments = ["run", suite, "--out", out, *(word for s in settings for word in ("--set", f"judge.{s}"))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        log = tmp_path / "log.txt"
        with log.open("w") as file:
            command = [Path(sys.executable).parent / "dspa-bench", *map(str, arguments)]
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        wait_until(lambda: sum(server.seen.values()) >= 11 and len(replies(out)) >= 9, process, log=log.read_text)
        process.send_signal(signal.SIGKILL)
        process.wait()
        first = Counter(server.answered)
    assert sum(first.values()) == 9
    with serving(reply=verdict) as another:
        assert run(suite, out, another.url) == {}
        assert not +first & +another.answered
        assert asked_twice(another) == {}
    assert values(out) == values(well)
    (account,) = read_accounts(out / "judging").values()
    assert account.unsettled == 2 and account.possible > 0


def replies(out: Path) -> list[str]:
    path = out / "judging" / "replies.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_max_cost_stops_a_run_and_a_higher_one_completes_it(well, suite, tmp_path, capsys):
    out, cap = tmp_path / "run", 1.15
    with serving(reply=verdict) as server:
        address = [f"judge.base_url={server.url}", "judge.max_tokens=1024"]  # an open call may cost that much
        assert run_command(suite, out, address, max_cost=cap, dry_run=False) == 1
        assert f"spending cap of {cap} reached" in capsys.readouterr().err
        (account,) = read_accounts(out / "judging").values()
        assert account.cost == pytest.approx(sum(server.answered.values()) * COST)
        assert 0 < account.cost + account.possible <= cap
        paid = len(server.answered)
        assert run_command(suite, out, address, max_cost=1000, dry_run=False) == 0
        assert len(server.answered) > paid and asked_twice(server) == {}
    assert values(out) == values(well)
    report = (out / "report" / "report.md").read_text()
    assert "## Judging" in report and "spending cap" not in report


def test_max_cost_without_a_judge_that_costs_is_refused(suite, tmp_path):
    with pytest.raises(ValueError, match=r"--max-cost: no judge of toys costs anything \(judges: sandbox_oracle\)"):
        run_command(suite, tmp_path / "run", ["judge={kind: sandbox_oracle}"], max_cost=1.0, dry_run=True)
    overrides = ["judge.price_in=null", "judge.price_out=null"]
    with pytest.raises(ValueError, match=r"max_cost needs price_in"):
        run_command(suite, tmp_path / "run", overrides, max_cost=1.0, dry_run=True)
    assert not (tmp_path / "run").exists()
