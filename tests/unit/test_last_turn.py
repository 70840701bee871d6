"""The last user turn: found in token ids alone, and what is conditioned on it."""

import re

import pytest
import torch

from dspa.density import measure_densities
from dspa.method import DSPA
from dspa.saes.sae import load_sae
from harness.compute import Meter, count_flops
from harness.compute.rates import Rates
from harness.data.triples import Message, Triple
from harness.model.chat import ChatFormat
from harness.model.steering import Steering
from tests.conftest import WORDS, make_tokenizer
from tests.reference import ReferenceDSPA
from tests.unit.test_dspa import FAMILIES, fit
from tests.unit.test_model_steering import Marker

# As the families write them, without tools and dates.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim "
    "+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "A chat. {% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEMPLATES = {"gemma": GEMMA, "qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL, "vicuna": VICUNA, "hh": None}
TURNS = ("Bake me a cake", "No.\n", "Then: tell me 😀 why?\n\nIs 日本 far")


def chatting(*turns: str):
    return tuple(Message(role=("user", "assistant")[i % 2], content=turn) for i, turn in enumerate(turns))


def make_bpe(template: str | None, markers: bool, tmp_path):
    """Byte-level BPE that merges across spaces, lines and words, so also across the seams of turns."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ["\n\nHuman: Bake me", "No.\n\nHuman: T", "far\n\nAssistant:", "user\nBake", "\n\nT", "why?\n\nIs"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = sorted(set(re.findall(r"<[|\w]+>", template or ""))) if markers else []
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=special
    )
    fast.chat_template = template
    return fast


def last_turn(chat: ChatFormat, ids: list[int]) -> str:
    start, end = chat.last_turn(ids)
    return chat.tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_last_user_turn_of_known_templates_whatever_merges_at_its_seams(template, markers, tmp_path):
    chat = ChatFormat.of(make_bpe(TEMPLATES[template], markers, tmp_path))
    for turns in (TURNS, TURNS[2:], TURNS[:1], (*TURNS, "Far.", "why?\n\nIs it")):
        ids = chat.prompt_ids(chatting(*turns))
        said = turns[-1]
        assert said in last_turn(chat, ids)
        start, end = chat.last_turn(ids)  # only the first and the last token may be merged with what is around them
        inner = chat.tokenizer.decode(ids[start + 1 : end - 1], clean_up_tokenization_spaces=False)
        assert inner in said


def test_the_seams_of_the_plain_form_do_merge(tmp_path):
    chat = ChatFormat.of(make_bpe(None, False, tmp_path))
    pieces = [chat.tokenizer.decode([i]) for i in chat.prompt_ids(chatting(*TURNS))]
    assert any(re.search(r"\w\.?\n\n?H", piece) or re.search(r": ?\w", piece) for piece in pieces)


def test_in_the_sandbox_the_turn_is_what_the_user_said():
    from pathlib import Path

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tasks/sandbox/assets/model")
    chat = ChatFormat.of(tokenizer)
    ids = chat.prompt_ids(chatting("tell me about the badger.", "it is angry.", "do not answer, friend?"))
    assert last_turn(chat, ids) == chat.tokenizer.decode(chat.tokenizer.encode("do not answer, <unk>?")[1:])
    answering = ids + tokenizer.encode("it is", add_special_tokens=False)
    assert chat.last_turn(answering) == chat.last_turn(ids)


def test_a_text_without_headers_is_one_turn_and_an_empty_turn_has_no_tokens():
    chat = ChatFormat.of(make_tokenizer())
    plain = chat.tokenizer.encode("w1 w2 ast w3", add_special_tokens=False)
    assert chat.last_turn(plain) == (0, 4)
    assert chat.last_turn([]) == (0, 0)
    ids = chat.prompt_ids(chatting("w1", "w2", ""))
    start, end = chat.last_turn(ids)
    assert start == end
    unfinished = chat.tokenizer.encode("<bos> usr w1 end ast w2 end usr w3 w4", add_special_tokens=False)
    assert chat.last_turn(unfinished) == (8, 10)


def test_a_system_turn_is_left_out_and_a_folded_one_counts_with_the_first_user_turn():
    tokenizer = make_tokenizer()
    instructed = (Message(role="system", content="w9"), *chatting("w1 w2"))
    chat = ChatFormat.of(tokenizer)
    assert last_turn(chat, chat.prompt_ids(instructed)) == "w1 w2"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "sys {{ m['content'] }} end ", "{{ raise_exception('') }}"
    )
    chat = ChatFormat.of(tokenizer)
    assert last_turn(chat, chat.prompt_ids(instructed)) == "w9 w1 w2"
    assert last_turn(chat, chat.prompt_ids((*instructed, *chatting("", "w3")[1:], *chatting("w4")))) == "w4"


def test_formats_that_do_not_show_their_turns_are_refused():
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="unknown to the tokenizer"):
        ChatFormat.of(tokenizer, "hh").last_turn([1, 8])
    tokenizer.chat_template = "{{ bos_token }}{{ messages[-1].content }} end ast "
    with pytest.raises(ValueError, match="does not write every turn"):
        ChatFormat.of(tokenizer).last_turn([1, 8])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}usr {{ m.content }} end {% endfor %}usr "
    with pytest.raises(ValueError, match="does not show where"):
        ChatFormat.of(tokenizer).last_turn([1, 8])


class LastTurnMarker(Marker):
    condition_on = "last_turn"


PROMPTS = [chatting("w1 w2 w3", "w4 w5", "w6 w7"), chatting("w30"), chatting("w1", "w2", "w3 w3 w3 w8", "w4", "w9")]


def test_a_session_conditions_on_the_last_turn_on_either_padding_side_and_not_on_the_continuation(tiny_base):
    base, seen = tiny_base("llama"), []
    rows = [base.prompt_ids(prompt) for prompt in PROMPTS]
    answers = [[9, 10], [5, 11], [12]]  # one of them writes a user header
    width = max(len(row) + len(answer) for row, answer in zip(rows, answers, strict=True))
    for side in ("left", "right"):
        ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
        for i, row in enumerate([r + a for r, a in zip(rows, answers, strict=True)]):
            place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
            ids[i, place], mask[i, place] = torch.tensor(row), 1
        marker = LastTurnMarker()
        with base.derive(intervention=marker).steering() as session, torch.no_grad():
            session.prompt_lengths([len(row) for row in rows])
            base.model(input_ids=ids, attention_mask=mask)
        assert session.steered_tokens.tolist() == [len(answer) + 1 for answer in answers]
        seen.append([ids[i][marker.prompts[0][i]].tolist() for i in range(len(rows))])
    said = [base.tokenizer.encode(p[-1]["content"], add_special_tokens=False) for p in PROMPTS]
    assert seen == [said, said]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_in_front_of_the_last_turn_does_not_matter_however_long(template, tmp_path):
    chat = ChatFormat.of(make_bpe(TEMPLATES[template], True, tmp_path))
    last = chat.last_turn(chat.prompt_ids(chatting("Bake", "No.", TURNS[2])))
    for before in (9, 60, 61, 62, 63, 64, 65, 300):
        ids = chat.prompt_ids(chatting("x" + "😀" * before, "No.", TURNS[2]))
        start, end = chat.last_turn(ids)
        assert end - start == last[1] - last[0]
        assert TURNS[2] in last_turn(chat, ids)
    for size in range(1, 100, 3):
        ids = chat.prompt_ids(chatting("Bake", "No.", "Is " + "日本" * size))
        assert last_turn(chat, ids).count("日本") == size
        start, end = chat.last_turn(ids)
        assert "日" not in chat.tokenizer.decode(ids[:start]) + chat.tokenizer.decode(ids[end:])


def test_a_session_without_the_chat_format_is_refused(tiny_base):
    with pytest.raises(ValueError, match="give last_turn"):
        Steering(tiny_base().model, LastTurnMarker(), special_ids=(), stop_ids=())


@pytest.mark.parametrize("family", FAMILIES)
def test_dspa_on_the_last_turn_decodes_and_scores_as_the_reference(tiny_base, triples, sae_refs, family):
    base = tiny_base(family)
    aligned = fit(base, triples, sae_refs, condition="last_turn")
    reference = ReferenceDSPA(aligned)
    prompts = [aligned.prompt_ids(prompt) for prompt in PROMPTS]
    for prompt, completion in zip(prompts, aligned.generate(PROMPTS, max_new_tokens=10), strict=True):
        assert completion.token_ids == reference.greedy(prompt, 10)
    requests = [(prompt, answer) for prompt in prompts for answer in ([9, 10, 11], [12], [5, 30])]
    for (context, answer), (value, _) in zip(requests, aligned.loglikelihood_tokens(requests), strict=True):
        logits = reference.logits(context, answer)[len(context) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(float(logits.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-4)
    whole = fit(base, triples, sae_refs)
    assert any(ReferenceDSPA(whole).sets(prompt) != reference.sets(prompt) for prompt in prompts)


def test_the_fit_counts_the_last_turn_alone_and_bills_what_it_encodes(tiny_base, triples, sae_refs, tmp_path):
    base, draw = tiny_base("gemma2"), iter(WORDS * 9)
    several = [Triple((*chatting(next(draw), next(draw)), *t.prompt), t.chosen, t.rejected) for t in triples]
    single, longer = (fit(base, texts, sae_refs, condition="last_turn") for texts in (triples, several))
    saes = {"input_sae": load_sae(sae_refs[0]), "output_sae": load_sae(sae_refs[1])}

    def measure(texts, condition, meter, batch_size=5):
        with meter.stage("features"):
            return measure_densities(base, texts, **saes, meter=meter, batch_size=batch_size, condition=condition)

    found, executed, predicted = [], [], []
    for condition in ("conversation", "last_turn"):
        meter = Meter(base.model, sample_profile=False)
        with count_flops() as counter:
            found.append(measure(several, condition, meter))
        executed.append(meter.bill(method="dspa", n_triples=len(several)).executed_flops)
        assert executed[-1] == counter.get_total_flops()
        method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], condition=condition, batch_size=5)
        predicted.append(method.predict(base, several, Rates(base.model.config))["features"])
    assert executed[0] - executed[1] == predicted[0] - predicted[1] > 0
    whole, turn = found
    alone = measure(several, "last_turn", Meter(sample_profile=False), batch_size=1)
    torch.testing.assert_close(turn.prompt.dense(), alone.prompt.dense(), atol=1e-6, rtol=0)
    assert torch.equal(turn.difference.dense(), whole.difference.dense())
    assert not torch.equal(turn.prompt.dense(), whole.prompt.dense())

    assert single.fingerprint != longer.fingerprint != fit(base, several, sae_refs).fingerprint
    longer.save(tmp_path / "artifact")
    loaded = type(longer).load(tmp_path / "artifact")
    assert loaded.intervention is not None
    assert loaded.intervention.condition_on == "last_turn"
    assert loaded.params["condition"] == "last_turn"
    # The same map with another condition is another artifact.
    settings = longer.intervention.settings.model_copy(update={"condition": "conversation"})
    other = longer.derive(intervention=type(longer.intervention)(longer.intervention.condition_map, settings))
    assert other.fingerprint != longer.fingerprint


def test_a_chat_format_without_turns_is_refused_before_any_forward(tiny_base, triples, sae_refs):
    base, meter = tiny_base("llama"), Meter(tiny_base("llama").model, sample_profile=False)
    plain = base.base.__class__(base.base.ref, base.base.model, base.tokenizer, ChatFormat(base.tokenizer, "hh"))
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], condition="last_turn")
    with pytest.raises(ValueError, match="does not show where the last user turn is"):
        method.fit(base.derive(base=plain), triples, meter=meter, seed=0)
    assert meter.bill(method="dspa", n_triples=0).tokens == 0


def test_the_audit_and_the_speed_measurement_select_by_the_last_turn_too(tiny_base, triples, sae_refs):
    from dspa.audit.prompts import measure_conditionality
    from dspa.perf.steering import selected_latents

    aligned = fit(tiny_base("gemma2"), triples, sae_refs, condition="last_turn")
    reference = ReferenceDSPA(aligned)
    prompts = [aligned.prompt_ids(prompt) for prompt in PROMPTS]
    expected = [set(reference.sets(prompt)[0]) for prompt in prompts]
    assert [set(row) for row in measure_conditionality(aligned, PROMPTS, examples=1, seed=0).ablated] == expected
    assert [set(row) - {-1} for row in selected_latents(aligned, prompts).tolist()] == expected
