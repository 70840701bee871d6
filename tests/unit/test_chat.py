import pytest

from harness.data.triples import Message, conversation
from harness.model.chat import ChatFormat
from tests.conftest import make_tokenizer

USER = conversation("w1 w2")
HISTORY = (*USER, Message(role="assistant", content="w3"), Message(role="user", content="w4"))
SYSTEM = (Message(role="system", content="w9"), *USER)


def words(chat: ChatFormat, ids: list[int]) -> str:
    return " ".join(chat.tokenizer.convert_ids_to_tokens(ids))


def test_the_template_writes_history_and_assistant_header():
    chat = ChatFormat.of(make_tokenizer())
    assert words(chat, chat.prompt_ids(HISTORY)) == "<bos> usr w1 w2 end ast w3 end usr w4 end ast"


def test_prompt_and_answer_ids_concatenate_to_the_rendered_conversation():
    chat = ChatFormat.of(make_tokenizer())
    whole = (*USER, Message(role="assistant", content="w5 w6"), Message(role="user", content="w7"))
    start = [*chat.prompt_ids(USER), *chat.response_ids("w5 w6"), chat.end_id]
    assert chat.prompt_ids(whole)[: len(start)] == start


def test_an_answer_ends_at_the_templates_end_of_turn_or_at_eos():
    chat = ChatFormat.of(make_tokenizer())
    assert words(chat, list(chat.stop_ids)) == "end <eos>"
    assert words(chat, [chat.end_id]) == "end"


def test_the_end_of_turn_is_found_where_the_last_assistant_turn_is_written_differently():
    tokenizer = make_tokenizer()
    last = "{% if loop.last %}w30 w31 {% endif %}"  # as Qwen3 writes an empty thought into the last turn
    tokenizer.chat_template = tokenizer.chat_template.replace("{% else %}ast ", "{% else %}ast " + last)
    chat = ChatFormat.of(tokenizer)
    assert words(chat, list(chat.stop_ids)) == "end <eos>"


def test_special_ids_are_bos_eos_pad_and_not_template_tokens():
    chat = ChatFormat.of(make_tokenizer())
    assert words(chat, list(chat.special_ids)) == "<pad> <bos> <eos>"


def test_a_system_turn_is_written_or_folded_into_the_first_user_turn():
    tokenizer = make_tokenizer()
    assert words(ChatFormat.of(tokenizer), ChatFormat.of(tokenizer).prompt_ids(SYSTEM)).startswith(
        "<bos> sys w9 end usr"
    )
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "sys {{ m['content'] }} end ", "{{ raise_exception('no') }}"
    )
    folding = ChatFormat.of(tokenizer)
    assert words(folding, folding.prompt_ids(SYSTEM)) == "<bos> usr w9 w1 w2 end ast"


def test_models_without_a_template_get_the_hh_dialogue_form():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    chat = ChatFormat.of(tokenizer)
    assert chat.kind == "hh"
    expected = tokenizer("\n\nHuman: w1 w2\n\nAssistant: w3\n\nHuman: w4\n\nAssistant:", add_special_tokens=False)
    assert chat.prompt_ids(HISTORY) == [tokenizer.bos_token_id, *expected["input_ids"]]
    assert chat.stop_ids == (tokenizer.eos_token_id,)


def test_unknown_or_impossible_formats_are_refused():
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="known: auto, tokenizer, hh"):
        ChatFormat.of(tokenizer, "alpaca")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template"):
        ChatFormat.of(tokenizer, "tokenizer")


def test_the_identity_changes_with_the_template():
    tokenizer = make_tokenizer()
    before = ChatFormat.of(tokenizer).identity
    tokenizer.chat_template = tokenizer.chat_template.replace("usr ", "usr usr ")
    assert ChatFormat.of(tokenizer).identity != before


def prepending_tokenizer():
    """Writes a space in front of every text, as Llama's first tokenizer does."""
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("▁:.\n" + "HumanAssistantHegoesWhere"))
    merges = [("H", "e"), ("▁", "He"), ("▁", "g"), ("▁g", "o"), ("e", "s")]
    vocabulary = dict.fromkeys(["<unk>", "<bos>", "<eos>", *letters, *map("".join, merges)])
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, merges, unk_token="<unk>"))
    spaced = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaced)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("answer", ["He goes.", "go", " He", "\nHe"])
def test_an_answer_has_the_same_ids_in_training_and_in_a_later_turns_history(answer):
    check_histories(ChatFormat.of(prepending_tokenizer()), "Where He goes", answer)
    chat = ChatFormat.of(prepending_tokenizer())
    assert words(chat, chat.response_ids("He goes.")) == "▁He ▁go es ."


def check_histories(chat: ChatFormat, question: str, answer: str) -> None:
    asked = conversation(question)
    history = (*asked, Message(role="assistant", content=answer), Message(role="user", content=question))
    start = chat.prompt_ids(asked) + chat.response_ids(answer)
    assert chat.prompt_ids(history)[: len(start)] == start


def test_real_answers_too_have_the_same_ids_in_a_history(data_folder):
    from transformers import AutoTokenizer

    from harness.data.triples import load_triples

    tokenizer = AutoTokenizer.from_pretrained(data_folder / "models" / "stories260K")
    chat = ChatFormat.of(tokenizer, "hh")
    assert tokenizer.convert_ids_to_tokens(chat.response_ids("He goes."))[0] == "▁He"
    for triple in load_triples(data_folder / "preferences" / "rasbt.jsonl")[:50]:
        for answer in (triple.chosen, triple.rejected):
            check_histories(chat, triple.prompt[-1]["content"], answer)


def test_an_answer_that_the_header_would_swallow_is_written_by_itself():
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces = sorted(set("\nAssistant: He"))
    merges = [("H", "e"), (":", " ")]
    vocabulary = dict.fromkeys([*pieces, "He", ": ", "<eos>"])
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    chat = ChatFormat.of(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"))
    assert chat.tokenizer.convert_ids_to_tokens(chat.response_ids("He")) == [" ", "He"]
