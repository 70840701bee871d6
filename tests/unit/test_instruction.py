"""Instructions in front of a conversation: words that the tokenizer cannot write, and those of the sandbox's suites."""

from pathlib import Path

import pytest

from baselines import RAHFSCIT, Prompt
from harness.compute import Meter
from harness.data.refs import ModelRef
from harness.experiment.check import check_base
from harness.experiment.suite import load_suite
from tasks.sandbox.world import REGISTER_OF

TASKS = Path(__file__).parents[2] / "tasks"
SUITES = sorted(path for path in (TASKS / "suites").glob("*.yaml") if ".gguf" not in path.read_text())  # of the sandbox
SANDBOX = ModelRef(path=str(TASKS / "sandbox" / "assets" / "model"))


def refs(tiny_folders) -> ModelRef:
    return ModelRef(path=str(tiny_folders["llama"]))


def test_the_shape_of_a_base_knows_which_words_its_tokenizer_lacks(tiny_folders, tiny_base):
    shape, chat = check_base(refs(tiny_folders)), tiny_base("llama").chat
    for find in (shape.unknown_words, chat.unknown_words):
        assert find("w1 hello, w2 there hello,") == ("hello", "there")
        assert find("w1 w2") == ()


@pytest.mark.parametrize(
    ("method", "named"),
    [
        (Prompt(instruction="w1 be kind"), "prompt: instruction has 2 of 3 words .* no token for: be, kind;"),
        (RAHFSCIT(good_instruction="w1 good", bad_instruction="w2"), "rahf_scit: good_instruction has 1 of 2 .*: good"),
        (RAHFSCIT(good_instruction="w1", bad_instruction="bad w2"), "rahf_scit: bad_instruction has 1 of 2 .*: bad;"),
    ],
)
def test_an_instruction_with_unknown_words_is_refused_before_work(tiny_folders, tiny_base, triples, method, named):
    with pytest.raises(ValueError, match=named):
        method.check(check_base(refs(tiny_folders)))
    base = tiny_base("llama")
    meter = Meter(base.model)
    with pytest.raises(ValueError, match=named):
        method.fit(base, triples, meter=meter, seed=0)
    assert meter.executed_flops == 0


def test_known_words_pass(tiny_folders):
    for method in (Prompt(instruction="w1 w2"), RAHFSCIT(good_instruction="w1", bad_instruction="w2 w3")):
        method.check(check_base(refs(tiny_folders)))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_suites_instructions_are_words_of_the_sandbox_and_none_of_them_is_judged(path):
    suite, shape, found = load_suite(path), check_base(SANDBOX), 0  # the words are the same in every world
    for _, method in suite.methods:
        for name in ("instruction", "good_instruction", "bad_instruction"):
            text = getattr(method, name, None)
            if text is not None:
                found += 1
                assert shape.unknown_words(text) == ()
                assert not {word.strip(".,?") for word in text.split()} & set(REGISTER_OF)
    assert found or not any(method.name in ("prompt", "rahf_scit") for _, method in suite.methods)


def test_the_default_instructions_need_another_vocabulary_than_the_sandboxs():
    with pytest.raises(ValueError, match="capable, considerate, assistant"):
        Prompt().check(check_base(SANDBOX))
