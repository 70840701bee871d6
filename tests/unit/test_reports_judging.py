"""The report's account of what judging took."""

from types import SimpleNamespace

from harness.judging.ledger import Ledger
from reports.judging import judging, judging_table


def test_a_run_without_a_ledger_has_no_account_of_judging(tmp_path):
    assert judging(SimpleNamespace(folder=tmp_path)) is None


def test_judges_with_and_without_prices_and_calls_without_a_bill_are_told_apart(tmp_path):
    ledger = Ledger(tmp_path / "judging")
    ledger.batch("a|b", "rate", requests=1200, reused=200)
    for outcome, cost in (("answered", 0.25), ("refused", 0.0), ("lost", None)):
        call = ledger.send("a|b", "http://h/v1", most=0.5, cap=None)
        ledger.end(call, outcome, cost=cost, prompt_tokens=1000, completion_tokens=2, model="m-2026")
    free = ledger.send("local", "http://h/v1", most=None, cap=None)
    ledger.end(free, "answered", cost=None, prompt_tokens=5, completion_tokens=6)
    frame = judging(SimpleNamespace(folder=tmp_path))
    assert frame["cost"].isna().tolist() == [False, True]
    assert judging_table(frame).splitlines()[2:] == [
        r"| a\|b | m-2026 | 1,200 | 200 | 3 | 1 | 2 | 3,000 | 6 | 0.2500 to 0.7500 |",
        "| local | – | 0 | 0 | 1 | 1 | 0 | 5 | 6 | no prices given |",
    ]
