"""What judges keep on disk: whole lines by many writers, replies, who asks what, and the sums of a ledger."""

import json
import multiprocessing
import os

import pytest

from harness.judging.ledger import Account, CapReached, Ledger, read_accounts
from harness.judging.verdicts import Journal, Replies, reply_key

SPAWN = multiprocessing.get_context("spawn")


def write_many(path, writer, count):
    journal = Journal(path)
    for number in range(count):
        journal.append({"writer": writer, "number": number, "text": "x" * 3000})


def test_lines_of_several_processes_stay_whole_and_in_order(tmp_path):
    path = tmp_path / "below" / "journal.jsonl"
    processes = [SPAWN.Process(target=write_many, args=(path, name, 20)) for name in "ab"]
    reader, seen = Journal(path), []
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        seen += reader.news()
    seen += reader.news()
    assert [process.exitcode for process in processes] == [0, 0]
    for name in "ab":
        assert [row["number"] for row in seen if row["writer"] == name] == list(range(20))
    assert reader.news() == []


@pytest.mark.parametrize(
    "torn", ['{"number": 2, "te', '{"number": 2}', "\u2028"], ids=["half", "no newline", "no JSON"]
)
def test_a_line_that_a_killed_writer_left_unfinished_is_not_there(tmp_path, torn):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"number": 1, "text": "a\u2028b\n"})
    with journal.path.open("a") as file:
        file.write(torn)
    assert journal.news() == [{"number": 1, "text": "a\u2028b\n"}]
    journal.append({"number": 3})
    assert journal.news() == [{"number": 3}]
    assert [row["number"] for row in Journal(journal.path).news()] == [1, 3]


def test_a_file_of_one_torn_line_is_begun_anew(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"numb')
    journal = Journal(path)
    assert journal.news() == []
    journal.append({"number": 1})
    assert journal.news() == [{"number": 1}]


@pytest.mark.parametrize(("line", "error"), [("nonsense", "Expecting value"), ("[1]", "no JSON object")])
def test_a_broken_line_is_named(tmp_path, line, error):
    (tmp_path / "j.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"j\.jsonl:2: damaged \({error}.*remove this line"):
        Journal(tmp_path / "j.jsonl").news()


def test_no_file_has_no_news(tmp_path):
    assert Journal(tmp_path / "j.jsonl").news() == []


def test_a_key_stands_for_the_judge_and_all_that_was_sent():
    hello = ({"role": "user", "content": "hello"},)
    keys = {
        reply_key({"model": "a"}, hello),
        reply_key({"model": "b"}, hello),
        reply_key({"model": "a"}, ({"role": "system", "content": "hello"},)),
        reply_key({"model": "a"}, (*hello, *hello)),
    }
    assert len(keys) == 4
    assert reply_key({"a": 1, "b": 2}, hello) == reply_key({"b": 2, "a": 1}, hello)


def test_replies_of_another_process_are_there_after_a_refresh(tmp_path):
    mine, other = Replies(tmp_path), Replies(tmp_path)
    other.keep("k", "judge", "text")
    assert mine.get("k") is None
    mine.refresh()
    assert mine.get("k") == "text"


def hold(folder, key, taken, let_go):
    with Replies(folder).claims() as claims:
        assert claims.take(key)
        taken.set()
        let_go.wait()
        os._exit(9)  # as when it is killed: nothing is cleaned up


def test_a_question_that_one_process_asks_is_not_asked_by_another_until_it_is_done_or_dead(tmp_path):
    taken, let_go = SPAWN.Event(), SPAWN.Event()
    key, another = reply_key({}, ()), reply_key({"another": 1}, ())
    process = SPAWN.Process(target=hold, args=(tmp_path, key, taken, let_go))
    process.start()
    assert taken.wait(60)
    with Replies(tmp_path).claims() as claims:
        assert not claims.take(key)
        assert claims.take(another)
        let_go.set()
        process.join()
        assert claims.take(key)
        claims.release(key)


def test_a_ledger_adds_up_by_judge(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.batch("a", "rate", requests=5, reused=1)
    ledger.shared("a")
    answered, cut, refused, lost = (ledger.send("a", "http://h/v1", most=0.5, cap=None) for _ in range(4))
    ledger.end(answered, "answered", cost=0.1, prompt_tokens=30, completion_tokens=7, model="m-1")
    ledger.end(cut, "useless", cost=0.2, prompt_tokens=31, completion_tokens=9, model="m-2")
    ledger.end(refused, "refused", cost=0.0, why="status 429")
    ledger.end(lost, "lost", cost=None)
    free = ledger.send("b", "http://h/v1", most=None, cap=None)
    ledger.end(free, "answered", cost=None, prompt_tokens=4, completion_tokens=5)
    ledger.send("b", "http://h/v1", most=None, cap=None)
    assert read_accounts(tmp_path) == {
        "a": Account(5, 2, 4, 1, 1, 1, 1, 0, 61, 16, pytest.approx(0.3), 0.5, {"m-1", "m-2"}),
        "b": Account(0, 0, 2, 1, 0, 0, 0, 1, 4, 5, None, None, set()),
    }


def test_no_ledger_has_no_accounts(tmp_path):
    assert read_accounts(tmp_path) == {}


@pytest.mark.parametrize(
    "row", [{}, {"event": "sent"}, {"event": "ended", "call": "never sent"}, {"event": "batch", "judge": "a"}]
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path, row):
    (tmp_path / "ledger.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="not a row of a ledger"):
        read_accounts(tmp_path)


def test_nothing_is_entered_that_could_bring_the_sum_above_the_cap(tmp_path):
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    first = ledger.send("a", "h", most=0.4, cap=1.0)
    other.send("b", "h", most=0.4, cap=1.0)
    with pytest.raises(CapReached, match=r"cap of 1 reached: 0 is spent, 0\.8 may be charged .* next may cost 0\.4"):
        ledger.send("a", "h", most=0.4, cap=1.0)
    ledger.end(first, "answered", cost=0.1)
    third = other.send("b", "h", most=0.5, cap=1.0)  # 0.1 + 0.4 + 0.5, exactly the cap
    other.end(third, "lost", cost=None)
    with pytest.raises(CapReached, match=r"0\.6 is spent, 0\.4 may be charged"):
        ledger.send("a", "h", most=0.01, cap=1.0)
    ledger.send("a", "h", most=0.01, cap=1.1)
    ledger.send("a", "h", most=0.01, cap=None)


def spend(folder, cap):
    ledger = Ledger(folder)
    try:
        for _ in range(20):
            ledger.end(ledger.send("a", "h", most=1.0, cap=cap), "answered", cost=1.0)
    except CapReached:
        pass


def test_several_processes_keep_one_cap(tmp_path):
    processes = [SPAWN.Process(target=spend, args=(tmp_path, 25.0)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    account = read_accounts(tmp_path)["a"]
    assert account.cost == account.calls
    assert 24 <= account.cost <= 25


def test_what_a_killed_process_had_open_counts_with_the_most_it_may_cost(tmp_path):
    Ledger(tmp_path).send("a", "h", most=0.7, cap=1.0)
    with pytest.raises(CapReached):
        Ledger(tmp_path).send("a", "h", most=0.7, cap=1.0)
    account = read_accounts(tmp_path)["a"]
    assert (account.unsettled, account.cost, account.possible) == (1, 0.0, 0.7)
