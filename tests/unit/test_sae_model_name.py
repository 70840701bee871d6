import pytest

from dspa.saes.sae import check_same_model
from harness.data.refs import ModelRef
from harness.method import BaseShape
from harness.model.base import base_shape


def refusal(trained_on: str | None, base: BaseShape) -> str | None:
    """Why an SAE made for ``trained_on`` is refused on ``base``; None when it is accepted."""
    try:
        check_same_model("SAE x", trained_on, base)
    except ValueError as problem:
        return str(problem)
    return None


def base(model_type: str, public_id: str | None = None) -> BaseShape:
    return BaseShape(public_id or "/models/sft", 26, 2304, model_type, public_id)


@pytest.mark.parametrize(
    ("trained_on", "fits"),
    [
        ("gemma-2-2b", base("gemma2", "google/gemma-2-2b")),
        ("gemma-2-2b", base("gemma2", "google/gemma-2-2b-it")),
        ("gemma-2-9b-it", base("gemma2", "google/gemma-2-9b")),
        ("google/gemma-3-1b-pt", base("gemma3_text", "google/gemma-3-1b-it")),
        ("google/gemma-3-4b-pt", base("gemma3", "google/gemma-3-4b-pt")),
        ("Qwen/Qwen3-8B-Base", base("qwen3", "Qwen/Qwen3-8B")),
        ("qwen3-8b", base("qwen3", "Qwen/Qwen3-8B")),
        ("Qwen/Qwen3-30B-A3B-Base", base("qwen3_moe", "Qwen/Qwen3-30B-A3B")),
        ("Qwen/Qwen3.5-9B-Base", base("qwen3_5_text", "Qwen/Qwen3.5-9B")),
        ("meta-llama/Llama-3.1-8B", base("llama", "meta-llama/Meta-Llama-3.1-8B-Instruct")),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", base("llama", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")),
        ("mistral-7b", base("mistral", "mistralai/Mistral-7B-v0.1")),
        ("gpt2-small", base("gpt2", "openai-community/gpt2")),
        ("pythia-70m-deduped", base("gpt_neox", "EleutherAI/pythia-70m-deduped")),
    ],
)
def test_an_sae_fits_the_model_it_was_made_for_and_its_variants(trained_on, fits):
    assert refusal(trained_on, fits) is None


@pytest.mark.parametrize(
    ("trained_on", "fine_tune"),
    [
        ("gemma-2-2b", base("gemma2")),
        ("gemma-2-2b", base("gemma2", "someone/gemma-2-2b-hh-sft")),
        ("gemma-2-2b", base("gemma2", "someone/helpful-assistant")),
        ("Qwen3-8B", base("qwen3")),
    ],
)
def test_a_fine_tune_is_accepted_from_a_folder_and_by_its_own_name(trained_on, fine_tune):
    assert refusal(trained_on, fine_tune) is None


@pytest.mark.parametrize("trained_on", [None, "", "tiny", "dspa-bench sandbox", "stories260K"])
def test_an_sae_that_names_no_known_family_is_judged_by_its_sizes_alone(trained_on):
    assert refusal(trained_on, base("gemma2", "google/gemma-2-2b")) is None


@pytest.mark.parametrize(
    ("trained_on", "other"),
    [
        ("gemma-2-2b", base("llama")),
        ("gemma-2b", base("gemma2")),
        ("gemma-2-2b", base("gemma")),
        ("gemma-2-2b", base("gemma3_text")),
        ("Qwen/Qwen3-8B-Base", base("qwen2", "Qwen/Qwen2.5-7B")),
        ("qwen2.5-7b-instruct", base("qwen3")),
        ("pythia-70m-deduped", base("llama")),
    ],
)
def test_another_family_is_refused_naming_both(trained_on, other):
    with pytest.raises(ValueError, match=f"SAE x: made for '{trained_on}' .* is of type '{other.model_type}'; use"):
        check_same_model("SAE x", trained_on, other)


@pytest.mark.parametrize(
    ("trained_on", "other"),
    [
        ("gemma-2-2b", base("gemma2", "google/gemma-2-27b")),
        ("gemma-2-27b", base("gemma2", "google/gemma-2-2b")),
        ("Qwen/Qwen3-8B-Base", base("qwen3", "Qwen/Qwen3-4B")),
        ("meta-llama/Llama-3.1-8B", base("llama", "meta-llama/Meta-Llama-3-8B")),
        ("pythia-70m-deduped", base("gpt_neox", "EleutherAI/pythia-70m")),
    ],
)
def test_another_public_model_of_the_family_is_refused_naming_both(trained_on, other):
    with pytest.raises(ValueError, match=f"made for '{trained_on}', but the base is '{other.public_id}'; use SAEs"):
        check_same_model("SAE x", trained_on, other)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
def test_the_type_of_a_base_is_read_from_its_configuration(tiny_folders, family):
    shape = base_shape(ModelRef(path=str(tiny_folders[family])))
    made_for = {"llama": "llama-8b", "gemma2": "gemma-2-2b", "gemma3": "gemma-3-1b", "qwen3": "qwen3-8b"}
    assert [name for name in made_for if refusal(made_for[name], shape) is None] == [family]
    assert shape.public_id is None
