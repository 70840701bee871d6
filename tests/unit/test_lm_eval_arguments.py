"""What lm-eval's `--model_args` may say of an artifact, and what lm-eval writes down about it."""

import pytest
from lm_eval.api.registry import get_model
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

from harness.evaluators.lm_eval import AlignedLM


@pytest.fixture
def artifact(tiny_base, tmp_path):
    tiny_base("llama").save(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize("form", ["string", "mapping"])
def test_an_artifact_is_named_by_its_folder_and_other_models_as_ever(form):
    def named(text):
        tracker = GeneralConfigTracker()
        arguments = text if form == "string" else dict(pair.split("=") for pair in text.split(","))
        tracker.log_experiment_args("aligned", arguments, None, None, False)
        return tracker.model_name_sanitized

    assert named("artifact=runs/a,max_length=9") == "runs__a"
    assert named("artifact=runs/b") == "runs__b"
    assert named("pretrained=org/model") == "org__model"


@pytest.mark.parametrize("name", ["artifact", "pretrained", "path"])
def test_the_usual_arguments_are_taken_where_they_say_what_an_artifact_is(artifact, name):
    usual = "dtype=float32,trust_remote_code=False,revision=main,device=cpu,batch_size=2,max_length=64"
    lm = get_model("aligned").create_from_arg_string(f"{name}={artifact},{usual}")
    assert isinstance(lm, AlignedLM) and lm.max_length == 64


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "takes one artifact, --model_args artifact=FOLDER; got 0"),
        ("artifact={0},pretrained={0}", "takes one artifact, --model_args artifact=FOLDER; got 2"),
        ("artifact={0},dtype=bfloat16", "does not take dtype=bfloat16 .*: the artifact is float32"),
        ("artifact={0},trust_remote_code=True", "does not take trust_remote_code=True .*; leave it out"),
        ("artifact={0},max_gen_toks=9", "does not take max_gen_toks=9 .*: give --gen_kwargs max_gen_toks=N instead"),
        ("artifact={0},enable_thinking=False", "the artifact's own chat format decides; it takes artifact"),
        ("artifact={0},parallelize=True", "an artifact stays on one device; leave it out"),
        ("artifact={0},colour=red", "does not take colour=red .*: leave it out; it takes artifact"),
    ],
)
def test_what_it_does_not_take_is_refused_with_a_sentence(artifact, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        get_model("aligned").create_from_arg_string(arguments.format(artifact), {"device": "cpu"})


def test_the_results_say_what_model_it_was(tiny_base):
    aligned = tiny_base("llama")
    info = AlignedLM(aligned).get_model_info()
    assert info["model_num_parameters"] == sum(p.numel() for p in aligned.model.parameters())
    assert (str(info["model_dtype"]), info["model_sha"]) == ("torch.float32", aligned.fingerprint)
