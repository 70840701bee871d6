"""FastChat runs artifacts: its own loading, conversations and decoding loop give what AlignedModel gives."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from harness.cli.pass_through import fastchat_command
from harness.data.refs import ModelRef
from harness.evaluators.fastchat import mend_chunks
from harness.evaluators.fastchat.model import ArtifactAdapter, ServedModel, register
from harness.model.aligned import AlignedModel
from tests.unit.test_dspa import PROMPTS, fit
from tests.unit.test_dspa_decoding import with_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # peft
TALK = (
    {"role": "user", "content": " w1  w2: w3"},
    {"role": "assistant", "content": "w4"},
    {"role": "user", "content": "w5\nw6 "},
)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """Once, and the collection of garbage after every answer, slow in a process this full, left out."""
    from fastchat.serve import inference

    register()
    register()  # as good as once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "gc", SimpleNamespace(collect=lambda: None))
        yield


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, tiny_base, tiny_folders, triples, sae_refs):
    """name -> artifact folder: bare, steered on top of a LoRA, and one with an instruction and without a template."""
    root = tmp_path_factory.mktemp("artifacts")
    steering = fit(tiny_base("qwen3"), triples, sae_refs, alpha=3.0).intervention
    steered = with_adapter(tiny_base("qwen3")).derive(intervention=steering)
    plain_dialogue = AlignedModel.from_base(ModelRef(path=str(tiny_folders["gemma2"]), chat="hh"))
    models = {
        "base-llama-2": tiny_base("llama"),  # a name that FastChat would give to another adapter
        "steered-peft": steered,
        "instructed": plain_dialogue.derive(system_prompt="w30 w31", method="prompt"),
    }
    for name, model in models.items():
        model.save(root / name)
    return {name: root / name for name in models}


@pytest.fixture(scope="module", params=["base-llama-2", "steered-peft", "instructed"])
def served(request, artifacts):
    """(artifact as we load it, FastChat's model, tokenizer and empty conversation)."""
    from fastchat.model.model_adapter import get_conversation_template, load_model

    path = str(artifacts[request.param])
    model, tokenizer = load_model(path, device="cpu")
    return AlignedModel.load(path), model, tokenizer, lambda: get_conversation_template(path)


def written(conversation, messages):
    """What FastChat's API server makes of ``messages``."""
    for message in messages:
        if message["role"] == "system":
            conversation.set_system_message(message["content"])
        else:
            conversation.append_message(conversation.roles[message["role"] == "assistant"], message["content"])
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def decode(model, tokenizer, prompt, *, new=8, **params):
    """The last output of the loop that FastChat's worker chooses."""
    from fastchat.model.model_adapter import get_generate_stream_function
    from fastchat.utils import get_context_length

    loop = get_generate_stream_function(model, "path")
    params = {"prompt": prompt, "temperature": 0.0, "max_new_tokens": new, "echo": False} | params
    return list(loop(model, tokenizer, params, "cpu", get_context_length(model.config)))[-1]


@pytest.mark.parametrize(
    "messages",
    [
        *PROMPTS[:3],
        TALK,
        ({"role": "system", "content": "w7"}, *TALK),
        ({"role": "user", "content": ""},),
        ({"role": "user", "content": "w1"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "w2"}),
    ],
)
def test_fastchats_conversation_becomes_the_token_ids_of_our_chat_format(served, messages):
    aligned, _, tokenizer, conversation = served
    assert tokenizer(written(conversation(), messages)).input_ids == aligned.prompt_ids(tuple(messages))


def test_fastchats_conversation_has_our_stop_tokens(served):
    aligned, _, _, conversation = served
    assert conversation().stop_token_ids == list(aligned.chat.stop_ids)


def test_fastchats_loop_decodes_the_tokens_of_generate(served):
    aligned, model, tokenizer, conversation = served
    for prompt, expected in zip(PROMPTS, aligned.generate(PROMPTS, max_new_tokens=6), strict=True):
        output = decode(model, tokenizer, written(conversation(), prompt), new=6, logprobs=1)
        assert output["logprobs"]["tokens"] == [aligned.tokenizer.decode([i]) for i in expected.token_ids]
        assert output["text"] == expected.text
        assert output["finish_reason"] == ("stop" if expected.finished else "length")
        assert output["usage"]["prompt_tokens"] == expected.prompt_tokens
        assert output["usage"]["completion_tokens"] == len(expected.token_ids)


def test_what_is_steered_answers_otherwise_than_unsteered_and_nothing_else_does(served):
    aligned, model, tokenizer, conversation = served
    plain = aligned.derive(intervention=None)
    texts = [decode(model, tokenizer, written(conversation(), prompt), new=6)["text"] for prompt in PROMPTS]
    unsteered = [c.text for c in plain.generate(PROMPTS, max_new_tokens=6)]
    assert (texts != unsteered) == (aligned.intervention is not None)


def test_conversations_decoded_at_once_do_not_disturb_each_other(served):
    aligned, model, tokenizer, conversation = served
    expected = [completion.text for completion in aligned.generate(PROMPTS, max_new_tokens=6)]
    prompts = [written(conversation(), prompt) for prompt in PROMPTS]
    found: dict[int, str] = {}
    barrier = threading.Barrier(len(prompts))

    def one(index):
        barrier.wait()
        found[index] = decode(model, tokenizer, prompts[index], new=6)["text"]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(prompts))] == expected


def test_decoding_step_by_step_in_turns_equals_one_after_the_other(served):
    aligned, model, _, _ = served
    rows = [aligned.prompt_ids(prompt) for prompt in PROMPTS[:2]]
    expected = [c.token_ids for c in aligned.generate(PROMPTS[:2], max_new_tokens=6)]
    tokens = [list(row) for row in rows]
    state = [None, None]
    found: list[list[int]] = [[], []]
    for _ in range(6):
        for i in (0, 1):
            if found[i] and found[i][-1] in aligned.chat.stop_ids:
                continue
            out = model(input_ids=torch.tensor([tokens[i]]), use_cache=True, past_key_values=state[i])
            state[i], tokens[i] = out.past_key_values, [int(out.logits[0, -1].argmax())]
            found[i] += tokens[i]
    assert [tuple(f) for f in found] == expected


def test_a_conversation_given_up_leaves_the_model_free(served):
    aligned, model, tokenizer, conversation = served
    from fastchat.model.model_adapter import get_generate_stream_function

    params = {"prompt": written(conversation(), PROMPTS[0]), "temperature": 0.0, "max_new_tokens": 9, "echo": False}
    stream = get_generate_stream_function(model, "path")(model, tokenizer, params, "cpu", 256, 1)
    next(stream)
    stream.close()
    expected = aligned.generate(PROMPTS[1:2], max_new_tokens=5)[0].text
    assert decode(model, tokenizer, written(conversation(), PROMPTS[1]), new=5)["text"] == expected
    model._aligned.generate(PROMPTS[:1], max_new_tokens=2)  # would raise were a session still open


def test_text_that_is_no_conversation_is_continued_as_it_is(served):
    aligned, _, tokenizer, _ = served
    assert tokenizer("w1 w2").input_ids == aligned.tokenizer("w1 w2")["input_ids"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: "w1" + text, "not a conversation that ends"),
        (lambda text: text + " w1", "not a conversation that ends"),
        (lambda text: text.replace("w6", "$$<image>$$"), "has a picture"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(served, spoil, complaint):
    _, model, tokenizer, conversation = served
    prompt = spoil(written(conversation(), TALK))
    with pytest.raises(ValueError, match=complaint):
        decode(model, tokenizer, prompt)
    with pytest.raises(TypeError, match=complaint):  # what FastChat's worker takes for a model that counts by itself
        tokenizer(prompt)
    assert tokenizer.num_tokens(prompt) == 1


def test_a_prompt_that_just_fits_is_not_cut_and_a_longer_one_is_refused(served):
    aligned, model, tokenizer, conversation = served
    prompt = written(conversation(), ({"role": "user", "content": " ".join(["w1"] * 200)},))
    length = len(tokenizer(prompt).input_ids)
    room = aligned.base.max_length - length
    assert decode(model, tokenizer, prompt, new=room)["usage"]["prompt_tokens"] == length
    with pytest.raises(ValueError, match=f"{length} tokens \\+ {room + 1} new ones exceed the context of 256"):
        decode(model, tokenizer, prompt, new=room + 1)


def test_an_answer_ends_at_our_stop_tokens_even_if_none_are_asked_for(served, monkeypatch):
    aligned, model, tokenizer, conversation = served
    tokens = aligned.generate(PROMPTS[:1], max_new_tokens=8)[0].token_ids
    middle = tokens[len(tokens) // 2]
    monkeypatch.setattr(tokenizer, "stop_ids", (middle,))
    output = decode(model, tokenizer, written(conversation(), PROMPTS[0]), stop_token_ids=None)
    assert output["finish_reason"] == "stop"
    assert output["usage"]["completion_tokens"] == tokens.index(middle) + 1


def test_the_sentence_repair_of_fastchats_command_line_is_refused(served):
    from fastchat.model.model_adapter import get_generate_stream_function

    _, model, tokenizer, conversation = served
    params = {"prompt": written(conversation(), TALK), "max_new_tokens": 2}
    with pytest.raises(ValueError, match="--judge-sent-end"):
        next(get_generate_stream_function(model, "")(model, tokenizer, params, "cpu", 256, judge_sent_end=True))


def test_only_a_folder_with_an_artifact_matches_and_it_does_so_first(artifacts, tiny_folders):
    from fastchat.model import model_adapter

    assert isinstance(model_adapter.model_adapters[0], ArtifactAdapter)
    assert sum(isinstance(adapter, ArtifactAdapter) for adapter in model_adapter.model_adapters) == 1
    for path in artifacts.values():
        assert isinstance(model_adapter.get_model_adapter(str(path)), ArtifactAdapter)
        assert isinstance(model_adapter.get_model_adapter(f"{path}/"), ArtifactAdapter)
    for other in (str(tiny_folders["llama"]), "base-llama-2", "lmsys/vicuna-7b-v1.5"):
        assert not isinstance(model_adapter.get_model_adapter(other), ArtifactAdapter)


def test_what_fastchat_knew_a_path_as_before_it_became_an_artifact_is_forgotten(tmp_path, tiny_base):
    from fastchat.model import model_adapter

    path = tmp_path / "later"
    assert not isinstance(model_adapter.get_model_adapter(str(path)), ArtifactAdapter)
    tiny_base("llama").save(path)
    assert isinstance(model_adapter.get_model_adapter(str(path)), ArtifactAdapter)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"revision": "v2"}, "cannot be served with {'revision': 'v2'}"),
        ({"load_8bit": True}, "cannot be served in 8 bits"),
        ({"device": "cuda", "num_gpus": 2, "max_gpu_memory": "1GiB"}, "device_map"),
    ],
)
def test_options_that_an_artifact_cannot_honour_are_refused(artifacts, options, complaint):
    from fastchat.model.model_adapter import load_model

    with pytest.raises(ValueError, match=complaint):
        load_model(str(artifacts["steered-peft"]), **({"device": "cpu"} | options))


def test_another_dtype_is_not_taken_and_said(artifacts, capsys):
    from fastchat.model.model_adapter import load_model

    model, _ = load_model(str(artifacts["base-llama-2"]), device="cpu", dtype=torch.bfloat16)
    assert model._aligned.model.dtype == torch.float32
    assert "served in its own dtype, torch.float32" in capsys.readouterr().out


def test_moving_a_served_model_moves_what_steers_it(served):
    aligned, model, tokenizer, conversation = served
    moved = ServedModel(model._aligned).to("cpu")
    expected = aligned.generate(PROMPTS[:1], max_new_tokens=5)[0].text
    assert decode(moved, tokenizer, written(conversation(), PROMPTS[0]), new=5)["text"] == expected


def test_streamed_chunks_of_the_api_server_can_be_written_under_pydantic_2():
    from fastchat.protocol.openai_api_protocol import ChatCompletionStreamResponse

    mend_chunks()
    chunk = ChatCompletionStreamResponse(model="m", choices=[], id="1", created=2)
    assert (
        chunk.json(exclude_unset=True, ensure_ascii=False) == '{"id": "1", "created": 2, "model": "m", "choices": []}'
    )


@pytest.mark.parametrize("module", ["fastchat.serve.nothing", "fastchat.nothing.at_all", "os", "fastchats"])
def test_a_module_that_fastchat_does_not_have_is_refused(module):
    with pytest.raises(ValueError, match="FastChat has no module"):
        fastchat_command(module, [])


def test_a_module_runs_with_its_arguments(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOGDIR", "")
    monkeypatch.delitem(sys.modules, "fastchat.llm_judge.show_result", raising=False)  # where another test imported it
    monkeypatch.chdir(tmp_path)
    judgments = tmp_path / "judgments.jsonl"
    judgments.write_text('{"model": "m", "score": 7, "turn": 1}\n{"model": "m", "score": 4, "turn": 2}\n')
    fastchat_command("fastchat.llm_judge.show_result", ["--input-file", str(judgments)])
    assert "5.5" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["judgments.jsonl"]
