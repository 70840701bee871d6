"""`dspa-bench fit`: what it takes, what it refuses, where it stops, and the trace that it writes."""

import json
import re
from pathlib import Path

import pytest

from tests.toys import write_suite


@pytest.fixture
def suite_path(tmp_path, tiny_folders) -> Path:
    return write_suite(tmp_path / "suite", tiny_folders["llama"])


def test_fit_stops_at_the_bill_it_is_given(call, suite_path, tmp_path, tiny_folders):
    fit = ["--base", tiny_folders["llama"], "--triples", suite_path.parent / "triples.jsonl"]
    code, out, err = call("fit", "sft", *fit, "--param", "batch_size=4", "--flops", 2e7, "--out", tmp_path / "sft")
    assert (code, err) == (0, "")
    assert re.search(r"stopped at the bill of 2e\+07: step \d+, epoch \d", out)
    bill = json.loads((tmp_path / "sft" / "aligned.json").read_text())["bill"]
    assert bill["executed_flops"] >= bill["flops_limit"] == 20_000_000
    code, out, err = call("fit", "caa", *fit, "--param", "layer=1", "--flops", 1000, "--out", tmp_path / "caa")
    assert code == 2
    assert "does not pay for one triple of caa" in err
    assert not (tmp_path / "caa").exists()


def test_fit_takes_triples_where_a_method_uses_them_and_nowhere_else(call, suite_path, tmp_path, tiny_folders):
    given, triples = ["--base", tiny_folders["llama"], "--out", tmp_path / "made"], suite_path.parent / "triples.jsonl"
    for method, options, expected in (
        ("caa", ["--param", "layer=1"], "caa is fitted on preference data; give it with --triples FILE"),
        (
            "base",
            ["--triples", triples, "--budget", 3],
            "base is not fitted on anything; leave out --triples, --budget",
        ),
    ):
        code, _, err = call("fit", method, *given, *options)
        assert code == 2
        assert expected in err
        assert not (tmp_path / "made").exists()
    code, out, err = call("fit", "base", *given)
    assert (code, err) == (0, "")
    assert "base without triples" in out
    assert json.loads((tmp_path / "made" / "aligned.json").read_text())["method"] == "base"


def test_fit_writes_a_chrome_trace_of_the_steps_it_sampled(call, suite_path, tmp_path, tiny_folders):
    given = ["--base", tiny_folders["llama"], "--triples", suite_path.parent / "triples.jsonl", "--param", "layer=1"]
    path = tmp_path / "traces" / "caa.json"
    code, out, err = call("fit", "caa", *given, "--out", tmp_path / "caa", "--trace", path)
    assert (code, err) == (0, "")
    assert "Chrome trace of one step of every kind (1 in all)" in out
    assert any(event["name"].startswith("features: forward") for event in json.loads(path.read_text())["traceEvents"])
    (tmp_path / "file").touch()
    for method, trace, expected in (
        ("caa", path, "exists already; traces are never overwritten"),
        ("caa", tmp_path / "again" / "trace.json", "is inside the artifact --out"),
        ("caa", tmp_path / "file" / "trace.json", "file' is not a folder"),
        ("base", tmp_path / "trace.json", "base is not fitted on anything; leave out --trace"),
    ):
        options = given if method == "caa" else given[:2]
        code, _, err = call("fit", method, *options, "--out", tmp_path / "again", "--trace", trace)
        assert code == 2
        assert expected in err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["toy_nose"], "unknown method 'toy_nose'; known: "),
        (["toy_noise", "--param", "scal=1"], "--param scal: unknown key 'scal'; known: scale"),
        (["toy_noise", "--param", "layer=9"], "layer 9 is outside"),
        (["toy_noise", "--budget", "13"], "budget 13 is larger than the data: 12 triples"),
        (["toy_noise", "--budget", "0"], "Invalid value for '--budget'"),
        (["toy_noise", "--base", "./nowhere"], "base model folder './nowhere' does not exist"),
        (["toy_noise", "--triples", "none.jsonl"], "triples file 'none.jsonl' does not exist"),
    ],
)
def test_fit_refuses_bad_input_before_it_loads_the_base(call, suite_path, tmp_path, tiny_folders, arguments, expected):
    given = ["--base", tiny_folders["llama"], "--triples", suite_path.parent / "triples.jsonl", "--out", tmp_path / "a"]
    code, _, err = call("fit", *given, *arguments)
    assert code == 2
    assert expected in err
    assert not (tmp_path / "a").exists()
