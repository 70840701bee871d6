"""The command line: help that reads well and comes at once, exit codes, one message for a user's mistake."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from harness.cli.app import ORDER, app
from tests.toys import write_suite

COMMANDS = ["run", "report", "verify", "fit", "eval", "generate", "lm-eval", "doctor", "sandbox", "sandbox build"]
COMMANDS += ["sandbox show", "init", "devices", "methods", "benchmarks", "judges", "describe", "schema", "chat"]
COMMANDS += ["data list", "data fetch", "data verify", "score alpaca-eval", "score mt-bench", "score agreement"]
COMMANDS += ["mt-bench judge", "audit", "finetune-sae", "train-sae", "data split", "formats build", "formats show"]


@pytest.fixture
def suite_path(tmp_path, tiny_folders) -> Path:
    return write_suite(tmp_path / "suite", tiny_folders["llama"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text_with_an_example(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    if command != "sandbox":
        assert f"Example: dspa-bench {command}" in result.output
    assert "<bool>" not in result.output
    undescribed = re.findall(r"^│ \*?\s+(--?\w[\w-]*)\s+\S*\s*│$", result.output, re.MULTILINE)
    assert undescribed == []


def test_help_needs_none_of_the_heavy_libraries():
    heavy = [
        "torch",
        "transformers",
        "trl",
        "lm_eval",
        "alpaca_eval",
        "fastchat",
        "sae_lens",
        "matplotlib",
        "pandas",
        "pydantic",
    ]
    code = (
        "import sys\nfrom typer.testing import CliRunner\n"
        "from harness.cli import main\nfrom harness.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_bad_input_is_one_message_and_exit_code_2_and_leaves_nothing(call, suite_path, tmp_path):
    code, out, err = call("run", suite_path, "--out", tmp_path / "run", "--set", "budgets=[99]")
    assert code == 2
    assert out == ""
    assert err.startswith("error: --set budgets=[99]: budgets[0]: budget 99 is larger than the data")
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_the_version_is_said_and_the_shell_completed(call):
    code, out, _ = call("--version")
    assert code == 0
    assert re.match(r"dspa-bench \d+\.\d+", out)
    assert "--install-completion" in call("--help")[1]


def test_a_quiet_run_says_only_how_it_ended(call, suite_path, tmp_path):
    small = ["--set", "budgets=[4]", "--set", "seeds=1", "--set", "variants.noise.sweep={}"]
    code, out, err = call("run", suite_path, "--out", tmp_path / "quiet", *small, "-q")
    assert (code, err) == (0, "")
    assert "to do" not in out
    assert "report: " in out
    code, _, err = call("run", suite_path, "-q", "--dry-run")
    assert code == 2
    assert "--quiet says nothing of what --dry-run asks for" in err


def test_an_option_that_does_not_exist_is_exit_code_2(call, suite_path):
    code, _, err = call("run", suite_path, "--cluster", "ray")
    assert code == 2
    assert "--cluster" in err


def test_the_commands_of_installed_packages_join_the_programs_own_in_the_order_of_work(call):
    _, out, _ = call("--help")
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", out, re.MULTILINE)
    assert listed == [*ORDER]


def test_without_installed_packages_the_program_says_how_to_install(call, monkeypatch):
    monkeypatch.setattr("harness.plugins.entry_points", lambda group: ())
    code, _, err = call("--help")
    assert code == 2
    assert err == (
        "error: no installed package has entry points 'dspa_bench.commands'; in a checkout run: pip install -e .\n"
    )


def test_a_dry_run_prints_the_plan_and_writes_nothing(call, suite_path, tmp_path):
    code, out, _ = call("run", suite_path, "--out", tmp_path / "run", "--dry-run", "--set", "execution.threads=3")
    assert code == 0
    for text in ("noise@scale=0.1", "cells: 8, of which 8 to do", "triples: 12 in", "budgets: 4, 8 triples, 2 seeds"):
        assert text in out
    for text in ("toy_bench: 6 prompts a cell", "judge: toy-v1", "device: cpu, 1 workers with 3 threads each"):
        assert text in out
    assert not (tmp_path / "run").exists()


def test_run_ends_with_0_when_all_is_there_and_with_1_naming_what_failed(call, suite_path, tmp_path):
    small = ["--set", "budgets=[4]", "--set", "seeds=1", "--set", "variants.noise.sweep={}"]
    code, out, err = call("run", suite_path, "--out", tmp_path / "good", *small)
    assert (code, err) == (0, "")
    assert "[2/2] base__n0__s0: done" in out
    assert f"report: {tmp_path}/good/report/report.html" in out
    assert "Evenness (%)" in out  # of the leaderboard
    assert (tmp_path / "good" / "report" / "tables" / "comparison.csv").is_file()

    code, out, err = call(
        "run", suite_path, "--out", tmp_path / "bad", *small, "--set", "variants.noise.params.scale=-1"
    )
    assert code == 1
    assert "failed: noise__n4__s0: fit: RuntimeError: the toy method was asked to fail" in err
    assert "1 of 2 cells are not complete" in err
    assert (tmp_path / "bad" / "report" / "report.md").is_file()

    code, out, _ = call("report", tmp_path / "good")
    assert (code, out) == (0, f"{tmp_path}/good/report/report.md\n")
    code, out, _ = call("report", tmp_path / "bad")
    assert (code, out) == (1, f"{tmp_path}/bad/report/report.md\n")
    (tmp_path / "bad" / "cells" / "base__n0__s0" / "cell.json").write_text("{")
    code, _, err = call("report", tmp_path / "bad")
    assert code == 2
    assert "base__n0__s0/cell.json:1: not valid JSON" in err
    code, _, err = call("report", tmp_path)
    assert code == 2
    assert "is not a run folder" in err


def test_an_error_that_is_not_the_users_is_one_line_and_its_traceback_is_in_a_file(
    call, suite_path, tmp_path, monkeypatch
):
    def broken(*_, **__):
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr("harness.cli.run.run_command", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, _, err = call("run", suite_path)
    (log,) = tmp_path.glob("dspa-bench-*.log")
    assert code == 1
    assert err == (
        f"error: RuntimeError: a bug of two lines; the traceback is in {log}, and `dspa-bench --debug COMMAND ...` "
        "prints it\n"
    )
    assert "Traceback (most recent call last)" in log.read_text()
    assert "in broken" in log.read_text()
    code, _, err = call("--debug", "run", suite_path)
    assert code == 1
    assert "in broken" in err
    assert err.endswith("error: RuntimeError: a bug of two lines\n")
    assert call("--debug", "report", tmp_path)[0] == 2
    assert "Traceback" not in call("report", tmp_path)[2]


def test_fit_eval_and_generate_work_on_one_artifact(call, suite_path, tmp_path, tiny_folders):
    data, artifact = suite_path.parent, tmp_path / "artifact"
    fit = ["fit", "toy_noise", "--base", tiny_folders["llama"], "--triples", data / "triples.jsonl", "--out", artifact]
    code, out, err = call(*fit, "--budget", 5, "--param", "scale=0.2", "--param", f"sae.path={tiny_folders['input']}")
    assert (code, err) == (0, "")
    assert "toy_noise on 5 triples" in out
    described = json.loads((artifact / "aligned.json").read_text())
    assert described["budget"]["n"] == 5
    assert described["params"]["scale"] == 0.2
    assert (artifact / described["params"]["sae"]["path"]).resolve() == tiny_folders["input"].resolve()

    code, out, err = call(
        "eval", artifact, "--suite", suite_path, "--out", tmp_path / "eval", "--benchmark", "toy_bench"
    )
    assert (code, err) == (0, "")
    assert re.search(r"evenness\s*│\s*\d+\.\d\d\s*│\s*6\s*│\s*0", out)
    assert "A toy judge made these numbers." in out
    assert len((tmp_path / "eval" / "records" / "toy_bench.jsonl").read_text().splitlines()) == 6

    code, out, _ = call("generate", artifact, "--prompt", "w1 w2", "--prompt", "w3", "--max-new-tokens", 5)
    assert code == 0
    assert len(out.split("\n\n")) == 2

    for wrong, expected in (
        (["generate", artifact, "--prompt", "w1 " * 300], "exceed the context"),
        (["generate", tmp_path, "--prompt", "w1"], "is not an artifact folder"),
        (["eval", artifact, "--suite", suite_path, "--out", artifact], "exists already"),
        (["eval", artifact, "--suite", suite_path, "--out", tmp_path / "e", "--benchmark", "x"], "has: toy_bench"),
        ([*fit], "artifacts are never overwritten"),
    ):
        code, _, err = call(*wrong)
        assert code == 2, err
        assert expected in err


def test_repeated_triples_are_said_by_every_command_that_draws_from_them(call, suite_path, tmp_path, tiny_folders):
    triples = suite_path.parent / "triples.jsonl"
    triples.write_text(triples.read_text() + triples.read_text().splitlines()[0] + "\n")
    said = "note: triples.jsonl: 1 of 13 triples repeat an earlier one and count once, so that there are 12;"
    code, _, err = call(
        "fit", "toy_noise", "--base", tiny_folders["llama"], "--triples", triples, "--out", tmp_path / "a"
    )
    assert code == 0
    assert said in err
    assert json.loads((tmp_path / "a" / "aligned.json").read_text())["budget"]["n"] == 12
    out = call("run", suite_path, "--dry-run", "--out", tmp_path / "run")[1]
    assert said in out
    assert "triples: 12 in" in out
    assert call("run", suite_path, "--out", tmp_path / "run")[0] == 0
    assert "1 of 13 triples repeat" in (tmp_path / "run" / "report" / "report.md").read_text()


def test_fit_says_what_is_wrong_with_a_public_base_that_cannot_be_read(call, suite_path, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise OSError("nothing/there is not a valid model identifier")

    monkeypatch.setattr("harness.model.pretrained.AutoConfig.from_pretrained", missing)
    triples = suite_path.parent / "triples.jsonl"
    code, _, err = call("fit", "toy_noise", "--base", "nothing/there", "--triples", triples, "--out", tmp_path / "a")
    assert code == 2
    assert err.startswith("error: cannot read the configuration of 'nothing/there': nothing/there is not a valid")


def test_an_out_folder_that_cannot_be_made_is_refused_before_any_work(call, suite_path, tmp_path, tiny_folders):
    (tmp_path / "file").write_text("")
    out = ["--out", tmp_path / "file" / "out"]
    given = ["--base", tiny_folders["llama"], "--triples", suite_path.parent / "triples.jsonl"]
    for arguments in (["run", suite_path], ["fit", "toy_noise", *given], ["eval", "x", "--suite", suite_path]):
        code, _, err = call(*arguments, *out)
        assert code == 2, err
        assert "file' is not a folder" in err


def test_eval_refuses_a_benchmark_without_its_judge_before_it_makes_anything(call, suite_path, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.toys.ToyBench.needs_judge", True)
    code, _, err = call("eval", "x", "--suite", suite_path, "--out", tmp_path / "e", "--set", "judge=null")
    assert code == 2
    assert err == "error: benchmark 'toy_bench' needs a judge; add `judge:` to the suite\n"
    assert not (tmp_path / "e").exists()


def test_the_lm_eval_example_names_an_argument_that_the_model_type_has():
    from harness.evaluators.lm_eval import AlignedLM

    result = CliRunner().invoke(app, ["lm-eval", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    example = re.search(r"dspa-bench lm-eval run --model aligned --model_args (\w+)=dspa-300 --tasks", result.output)
    assert example
    assert example[1] in inspect.signature(AlignedLM).parameters


def test_lm_eval_gets_its_arguments_as_they_are(call, monkeypatch):
    import harness.evaluators.lm_eval

    seen = []
    monkeypatch.setattr(harness.evaluators.lm_eval, "main", seen.append)
    call("lm-eval", "--model", "aligned", "--model_args", "path=x", "--tasks", "a,b", "--limit=3", "run")
    call("lm-eval", "--", "--help")
    assert seen == [["--model", "aligned", "--model_args", "path=x", "--tasks", "a,b", "--limit=3", "run"], ["--help"]]


def test_doctor_names_what_is_missing_and_how_to_mend_it(call, monkeypatch, tmp_path):
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path))
    code, out, _ = call("doctor")
    assert code == 0, out
    assert re.search(r"^ok +methods: .*\bdspa\b", out, re.MULTILINE)
    monkeypatch.setenv("DSPA_BENCH_DATA", str(tmp_path / "gone"))
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["torch>=99", "no-such-thing>=1"])
    code, out, _ = call("doctor")
    assert code == 1
    assert "MISSING  torch: " in out
    assert "needs >=99: pip install" in out
    assert "MISSING  no-such-thing: not installed\n         pip install -c constraints.txt 'no-such-thing>=1'" in out
    assert "gone is no folder" in out
    code, out, _ = call("doctor", "--json")
    found = {finding["what"]: finding for finding in json.loads(out)}
    assert (code, found["no-such-thing"]["found"], found["torch"]["optional"]) == (1, "not installed", False)
    assert found["no-such-thing"]["mend"] == "pip install -c constraints.txt 'no-such-thing>=1'"


@pytest.mark.parametrize(("gain", "offered"), [(4.0, True), (0.5, False)])
def test_doctor_offers_bfloat16_where_it_is_faster(gain, offered, call, monkeypatch):
    rate = {torch.float32: 1e9, torch.bfloat16: gain * 1e9}
    monkeypatch.setattr("harness.experiment.outlook.product_rate", lambda width, *, dtype, device: rate[dtype])
    code, out, _ = call("doctor")
    assert code == 0
    assert f"bfloat16: matrix products on this CPU run {gain:.2g} times as fast as in float32" in out
    assert ("dtype: bfloat16}` in a suite" in out) == offered


def test_the_installed_program_is_this_one():
    program = Path(sys.executable).parent / "dspa-bench"
    done = subprocess.run(
        [program, "--help"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert "Compare preference-alignment methods on the same data" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cudda"], "device 'cudda' cannot be used"),
        (["--chat", "llama"], "--chat 'llama' is not known; allowed: auto, tokenizer, hh"),
    ],
)
def test_an_unknown_device_or_chat_format_is_one_message_and_leaves_nothing(
    call, suite_path, tiny_folders, tmp_path, options, said
):
    out = tmp_path / "out"
    triples = suite_path.parent / "triples.jsonl"
    code, _, err = call("fit", "sft", "--base", tiny_folders["llama"], "--triples", triples, "--out", out, *options)
    assert (code, out.exists()) == (2, False)
    assert err.startswith(f"error: {said}")


def test_a_damaged_artifact_is_one_message_that_names_the_file(call, tmp_path):
    (tmp_path / "aligned.json").write_text('{"a":')
    code, _, err = call("generate", tmp_path, "--prompt", "hello")
    assert code == 2
    assert err.startswith(f"error: {tmp_path / 'aligned.json'} is damaged")


def test_a_prompt_without_text_is_refused(call, tmp_path):
    assert call("generate", tmp_path, "--prompt", " ") == (2, "", "error: --prompt is empty; give what the user says\n")
