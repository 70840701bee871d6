"""A whole run, with failures, logs, a judge and reports: no key and no home folder in any file it leaves."""

import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from harness.cli.run import run_command
from harness.discretion import discreet, without_keys
from tests.judge_server import Server, completion, serving
from tests.toys import write_suite

KEYS = {"OPENAI_API_KEY": "sk-secret-of-openai", "HF_TOKEN": "hf_secretofthehub", "WANDB_API_KEY": "wandbsecretkey"}
LEAKY = """
import logging, os, sys
from harness.method import MethodConfig, register_method

@register_method("leaky")
class Leaky(MethodConfig):
    fails: bool = False
    def fit(self, base, triples, *, meter, seed):
        print("using", os.environ["OPENAI_API_KEY"], "from", os.path.expanduser("~/data"))
        print(dict(os.environ), file=sys.stderr)
        logging.getLogger("x").warning("token %s", os.environ["HF_TOKEN"])
        if self.fails:
            raise RuntimeError(f"no {os.path.expanduser('~/data/file')} for {os.environ['HF_TOKEN']}")
        return base.derive(method="leaky", system_prompt="w1", params={})
"""


class Tattling(Server):
    """A judge that repeats what key it was sent, now in a verdict, now in an error."""

    def plan(self, words):
        key = self.requests[-1][0].get("authorization", "")
        if "w82" in words:
            return 401, {"error": {"message": f"{key} is no key"}}
        return 200, completion(f"{key} says [[6]]")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folders):
    """(run folder, home, what was printed) of a run whose every input is below the home folder."""
    home = tmp_path_factory.mktemp("homes") / "gloria"
    shutil.copytree(tiny_folders["llama"], home / "models" / "llama")
    suites = home / "suites"
    suites.mkdir()
    (suites / "leaky_plugin.py").write_text(LEAKY)
    questions = [{"question_id": n, "category": "writing", "turns": [f"w{n} w1", f"w{n} w2"]} for n in (81, 82)]
    (suites / "mt.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    lora = {"tuning": "lora", "lora_rank": 2, "epochs": 1, "batch_size": 2}
    with serving(kind=Tattling) as server:
        suite = write_suite(
            suites,
            home / "models" / "llama",
            budgets=[4],
            seeds=1,
            plugins=["tests.toys", "leaky_plugin"],
            judge={"kind": "openai", "base_url": server.url, "model": "m", "attempts": 1},
            benchmarks=[{"name": "mt_bench", "questions": "mt.jsonl", "temperatures": 1.0, "max_new_tokens": 4}],
            variants=[
                {"name": "base", "method": "toy_base"},
                {"name": "noise", "method": "toy_noise", "params": {"scale": 0.2}},
                {"name": "tuned", "method": "sft", "params": lora},
                {"name": "leaky", "method": "leaky"},
                {"name": "failing", "method": "leaky", "params": {"fails": True}},
            ],
            execution={"workers": 1, "threads": 1},
        )
        said = StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
            for name, value in {**KEYS, "HOME": str(home)}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["dspa-bench", "run", str(suite), "--out", str(home / "runs" / "first")])
            code = run_command(suite, home / "runs" / "first", [], max_cost=None, dry_run=False)
    assert code == 1, said.getvalue()
    return home / "runs" / "first", home, said.getvalue()


def test_no_key_and_no_home_folder_is_in_any_file_of_a_run(run):
    folder, home, _ = run
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for word in (str(home), *KEYS.values()):
            if word.encode() in content:
                found.setdefault(file.relative_to(folder).as_posix(), []).append(word)
    assert found == {}
    names = {file.name for file in folder.rglob("*")}
    assert {"plan.json", "environment.json", "identity.json", "suite.yaml", "log.txt", "traceback.txt"} <= names
    assert {"ledger.jsonl", "replies.jsonl", "adapter_config.json", "report.html", "aligned.json"} <= names


def test_what_is_left_of_them_says_that_something_was_there(run):
    folder, _, printed = run
    assert "using *** from ~/data" in (folder / "cells" / "leaky__n4__s0" / "log.txt").read_text()
    assert "no ~/data/file for ***" in (folder / "cells" / "failing__n4__s0" / "traceback.txt").read_text()
    assert "no ~/data/file for ***" in printed
    assert not any(key in printed for key in KEYS.values())


def test_what_only_looks_like_a_key_or_a_home_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ann")
    for name, value in {"MONKEY": "banana-split", "API_KEY": "short", "A_TOKENS": "one-token-1, one-token-2"}.items():
        monkeypatch.setenv(name, value)
    assert discreet("/home/anna /home/ann.old /home/ann/x '/home/ann'") == "/home/anna /home/ann.old ~/x '~'"
    assert discreet("/nfs/home/ann/x cc -I/home/ann/x") == "/nfs/home/ann/x cc -I~/x"
    assert without_keys("banana-split short one-token-1 one-token-2 mine-and-only", ["mine-and-only"]) == (
        "banana-split short *** *** ***"
    )


def test_a_key_longer_than_a_file_name_may_be_is_a_key(monkeypatch):
    token = "ey" + "Jh" * 400
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    assert discreet(f"sent {token}") == "sent ***"


def test_a_user_without_a_home_folder_keeps_every_path(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["no such user"])  # as in a container under any number
    assert discreet("/home/ann/x") == "/home/ann/x"
