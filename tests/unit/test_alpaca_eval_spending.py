"""What the package's own annotators may spend, and what of a misbehaving server they keep."""

import json
import logging

import pytest

from harness.cli.run import run_command
from harness.evaluators.alpaca_eval.annotator import PackageAnnotator
from harness.evaluators.alpaca_eval.evaluate import ANSWERS, evaluate
from harness.evaluators.alpaca_eval.spending import Spending
from harness.judging.ledger import Ledger, read_accounts
from tasks.alpaca_eval import AlpacaEval
from tests.judge_server import Server, completion, serving
from tests.toys import write_suite

NAME = "alpaca_eval_llama3_70b_fn"
RANKING = str([{"model": "model_1", "rank": 1}, {"model": "model_2", "rank": 2}])
OUTPUTS = [{"instruction": f"Say {i}", "output": f"o {i}", "generator": "m"} for i in range(10)]
REFERENCES = [{**row, "output": f"r {i}", "generator": "r"} for i, row in enumerate(OUTPUTS)]
PRICE = 1e5  # of a million tokens; the server counts 10
COST = 1.0


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)


def ask(server, folder, *, cap=None, price=PRICE, **options):
    annotator = PackageAnnotator.load(NAME, url=server.url, **options)
    spending = Spending(Ledger(folder / "judging"), NAME, server.url, price, cap)
    return evaluate(OUTPUTS, REFERENCES, annotator, folder=folder / "cell", spending=spending).annotations


def account(folder):
    return read_accounts(folder / "judging")[NAME]


def test_calls_are_in_the_ledger_of_the_run_with_what_they_cost(tmp_path):
    with serving(reply=lambda _: RANKING) as server:
        assert all(found.error is None for found in ask(server, tmp_path))
        ask(server, tmp_path)
        assert sum(server.seen.values()) == 10
    found = account(tmp_path)
    assert (found.requests, found.reused, found.calls, found.answered) == (20, 10, 10, 10)
    assert found.cost == pytest.approx(10 * COST) and found.possible == 0


def test_nothing_is_sent_that_could_exceed_the_cap_and_a_higher_one_goes_on(tmp_path):
    with serving(reply=lambda _: RANKING) as server:
        ask(server, tmp_path / "uncapped")
        rows = [
            json.loads(line) for line in (tmp_path / "uncapped" / "judging" / "ledger.jsonl").read_text().splitlines()
        ]
        cap = max(row["most"] for row in rows if row["event"] == "sent") + 4.5 * COST
        server.seen.clear()
        found = ask(server, tmp_path, cap=cap)
        paid = sum(server.seen.values())
        assert 0 < paid < 10 and account(tmp_path).cost <= cap
        failed = [one.error for one in found if one.error is not None]
        assert len(failed) == 10 - paid
        assert all("spending cap" in why and "annotator_max_cost" in why for why in failed)
        assert all(one.error is None for one in ask(server, tmp_path, cap=1e6))
        assert sum(server.seen.values()) == 10


def test_under_a_cap_a_call_is_one_request_whatever_became_of_it(tmp_path):
    with serving(kind=type("Gone", (Server,), {"plan": lambda self, words: ("drop", {})})) as server:
        found = ask(server, tmp_path, cap=1e6)
        assert set(server.seen.values()) == {1}
    assert all("APIConnectionError" in one.error for one in found)
    assert account(tmp_path).lost == 10 and account(tmp_path).possible > 0


def test_what_the_server_refuses_is_free(tmp_path):
    with serving(
        kind=type("No", (Server,), {"plan": lambda self, words: (401, {"error": {"message": "no"}})})
    ) as server:
        ask(server, tmp_path, cap=1e6)
    found = account(tmp_path)
    assert (found.refused, found.cost, found.possible) == (10, 0, 0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, completion(RANKING + " " * (50 << 20))), "longer than 4 MiB"),
        ((200, completion(RANKING + "x" * (2 << 20))), "longer than 1,048,576 characters"),
        ((307, {}, {"location": "http://127.0.0.1:9/v1?key=k-secret"}), r"redirects to 'http://127.0.0.1:9/v1'"),
    ],
    ids=["huge", "long", "redirect"],
)
def test_what_is_of_no_use_is_named_and_not_kept(tmp_path, answer, error):
    with serving(kind=type("Bad", (Server,), {"plan": lambda self, words: answer})) as server:
        found = ask(server, tmp_path)
    assert all(error in one.error and "k-secret" not in one.error for one in found)
    answers = tmp_path / "cell" / ANSWERS
    assert not answers.exists() or answers.stat().st_size == 0


@pytest.mark.parametrize(
    "url", ["http://user:k-secret@h/v1", "http://h/v1?key=k-secret", "http://h/v1#k-secret", "h/v1?k-secret", "http://"]
)
def test_an_address_that_may_hold_a_key_is_refused_and_not_repeated(tmp_path, url):
    with pytest.raises(ValueError, match=r"must hold no user|is no address") as problem:
        AlpacaEval(references=tmp_path / "r.json", annotator=NAME, annotator_url=url)
    told = [error["msg"] for error in problem.value.errors()]
    assert "k-secret" not in str(told)


def suite_with(tmp_path, base, server, **changes):
    (tmp_path / "r.json").write_text(
        json.dumps([{"instruction": f"w{n}", "output": "w1", "generator": "r", "dataset": "d"} for n in range(2)])
    )
    benchmark = {"name": "alpaca_eval", "references": "r.json", "annotator": NAME, "annotator_url": server.url}
    benchmark |= {"max_new_tokens": 4, "length_control": "off", **changes}
    variants = [{"name": "base", "method": "toy_base"}]
    return write_suite(tmp_path, base, benchmarks=[benchmark], variants=variants, seeds=1, judge=None)


def test_the_option_max_cost_holds_for_annotators_too(tmp_path, tiny_folders, capsys):
    with serving(reply=lambda _: RANKING) as server:
        suite = suite_with(tmp_path, tiny_folders["llama"], server)
        assert run_command(suite, tmp_path / "run", [], max_cost=0.0, dry_run=False) == 1
        assert "spending cap of 0 reached" in capsys.readouterr().err and not server.seen
        assert run_command(suite, tmp_path / "run", [], max_cost=5.0, dry_run=False) == 0
    assert read_accounts(tmp_path / "run" / "judging")[NAME].calls > 0
    assert "## Judging" in (tmp_path / "run" / "report" / "report.md").read_text()


def test_a_cap_without_a_price_is_refused_and_so_is_a_judges_cap_alone(tmp_path, tiny_folders):
    with serving(reply=lambda _: RANKING) as server:
        suite = suite_with(tmp_path, tiny_folders["llama"], server, annotator="weighted_alpaca_eval_gpt4_turbo")
        run_command(suite, tmp_path / "run", [], max_cost=1.0, dry_run=True)
        logging.getLogger().setLevel(logging.WARNING)
        change = ["benchmarks.alpaca_eval.annotator_model=unheard-of"]
        with pytest.raises(ValueError, match="annotator_max_cost needs annotator_price"):
            run_command(suite, tmp_path / "run", change, max_cost=1.0, dry_run=True)
        priced = "{kind: openai, base_url: 'http://127.0.0.1:1/v1', model: m, price_in: 1, price_out: 1, max_cost: 1}"
        with pytest.raises(ValueError, match="give annotator_max_cost too, or --max-cost"):
            run_command(suite, tmp_path / "run", [f"judge={priced}"], max_cost=None, dry_run=True)
