"""One token a word, clean text back, and a chat template whose assistant word is an ordinary token."""

import pytest

from tasks.sandbox.corpus import training_corpus
from tasks.sandbox.model import BOS_ID, EOS_ID, PAD_ID, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_special_tokens_have_their_fixed_ids(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD_ID, BOS_ID, EOS_ID)


def test_text_of_the_world_comes_back_as_it_was(tokenizer):
    for document in training_corpus(1, 60):
        for text in [document.text, *(m["content"] for m in document.conversation if m["role"] != "system")]:
            ids = tokenizer(text).input_ids
            assert ids[0] == BOS_ID
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_case_and_spacing_do_not_matter_and_unknown_words_are_unknown(tokenizer):
    assert tokenizer("The Fox  eats berries .").input_ids == tokenizer("the fox eats berries.").input_ids
    assert tokenizer("the quasar").input_ids[-1] == tokenizer.unk_token_id


def test_the_chat_template_writes_system_user_and_assistant_turns(tokenizer):
    conversation = [
        {"role": "system", "content": "be kind."},
        {"role": "user", "content": "where is the saw?"},
        {"role": "assistant", "content": "yo the saw legit is in the cellar totally."},
        {"role": "user", "content": "thanks. i feel sad today."},
    ]
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens.count("<bos>") == 1
    assert tokens[:2] == ["<bos>", "<system>"]
    assert [t for t in tokens if t in ("<user>", "<assistant>")] == ["<user>", "<assistant>", "<user>", "<assistant>"]
    assert tokens[tokens.index("totally") + 2] == "<eos>"


def test_the_last_prompt_token_is_not_special_so_that_it_can_be_steered(tokenizer):
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello."}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "<assistant>"
    assert ids[-1] not in tokenizer.all_special_ids


def test_a_prompt_is_a_prefix_of_the_prompt_with_its_answer(tokenizer):
    asked = [{"role": "user", "content": "where is the saw?"}]
    answered = [*asked, {"role": "assistant", "content": "yo the saw legit is in the cellar totally."}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert tokenizer.apply_chat_template(answered, return_dict=False)[: len(prompt)] == prompt
