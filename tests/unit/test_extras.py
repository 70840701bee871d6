"""Packages that a lean installation lacks: what they are needed for, what is said without them, who brings them."""

import subprocess
import sys
import tomllib

import pytest

from harness.plugins import HOME
from tasks.alpaca_eval import AlpacaEval
from tasks.multiple_choice import MultipleChoice

PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def in_command(*words):
    return lambda call: call(*words)[::2]


def in_check(benchmark):
    def check(_):
        with pytest.raises(ValueError, match="needs the package") as refused:
            benchmark.check()
        return 2, str(refused.value)

    return check


@pytest.mark.parametrize(
    ("module", "asked", "what"),
    [
        ("lm_eval", in_check(MultipleChoice(tasks=("arc_easy",))), "benchmark 'multiple_choice'"),
        ("lm_eval", in_command("lm-eval", "ls", "tasks"), "`dspa-bench lm-eval`"),
        ("lm_eval", in_command("perf", "lm-eval"), "`dspa-bench perf lm-eval`"),
        ("alpaca_eval", in_check(AlpacaEval(reference="v2")), "benchmark 'alpaca_eval'"),
        ("fastchat", in_command("fastchat", "fastchat.serve.controller"), "`dspa-bench fastchat`"),
    ],
)
def test_what_needs_a_missing_package_names_the_extra_that_brings_it(module, asked, what, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    code, said = asked(call)
    extra = module.replace("_", "-")
    assert code == 2
    assert f"{what} needs the package {module}, which is not installed" in said
    assert f"pip install 'dspa-bench[{extra}]'" in said
    assert extra in EXTRAS


def test_annotations_are_not_scored_without_the_package(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "alpaca_eval", None)
    (tmp_path / "annotations.json").write_text(
        '[{"instruction": "a", "output_1": "b", "output_2": "c", "generator_1": "r", "generator_2": "m",'
        ' "annotator": "x", "preference": 1.0}]'
    )
    code, _, err = call("score", "alpaca-eval", tmp_path / "annotations.json")
    assert code == 2
    assert "'dspa-bench[alpaca-eval]'" in err


def test_all_and_dev_bring_every_extra():
    (everything,) = EXTRAS["all"]
    named = set(everything.removeprefix("dspa-bench[").removesuffix("]").split(","))
    assert named == set(EXTRAS) - {"all", "dev", "vllm"}, "vLLM wants other versions than we pin"
    assert "dspa-bench[all]" in EXTRAS["dev"]


def test_the_program_and_every_method_load_without_the_extras(tmp_path):
    code = (
        "import sys\n"
        "names = 'lm_eval', 'alpaca_eval', 'fastchat', 'anthropic', 'pkg_resources', 'gguf', 'vaderSentiment', 'ray'\n"
        "sys.modules.update(dict.fromkeys(names))\n"
        "sys.argv = ['dspa-bench', 'methods']\n"
        "from harness.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dspa" in done.stdout
