"""What a steering session does forward by forward, and what it refuses rather than leaving tokens unsteered."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from harness.model.decoder import find_decoder
from harness.model.steering import Steering


class Marker:
    """Adds 1 to the residual at every steered token, and remembers the prompts it was conditioned on."""

    name, positions = "marker", "generation"

    def __init__(self, read: int = 1, write: int = 2) -> None:
        self.read_layers, self.write_layers = (read,), (write,)
        self.prompts: list[torch.Tensor] = []

    def condition(self, residual, prompt, *, tally=None):
        self.prompts.append(prompt)
        return {"row": torch.arange(len(prompt))}

    def delta(self, layer, residual, state, steered, *, tally=None):
        return steered[..., None].expand_as(residual).float()

    def tensors(self):
        return {}

    def params(self):
        return {}

    def identity(self):
        return {}

    @classmethod
    def restore(cls, tensors, params, device):
        return cls()

    def to(self, device):
        return self

    def tally(self):
        return None

    def figures(self, tallies):
        return {}


def run(base, intervention, *, special=(), stop=()):
    return Steering(base.model, intervention, special_ids=special, stop_ids=stop)


def edited_positions(base, intervention, *, special=(), **forward):
    """[row, pos] where the residual after the write layer differs from the unsteered one."""
    layer = find_decoder(base.model).layers[intervention.write_layers[0]]
    seen = []
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
        base.model(**forward)
        handle.remove()
        with run(base, intervention, special=special):
            handle = layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
            base.model(**forward)
            handle.remove()
    return (seen[0] != seen[1]).any(-1)


IDS = torch.tensor([[0, 0, 1, 9, 10], [1, 9, 10, 11, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def test_a_prefill_steers_the_last_prompt_token_and_conditions_on_the_prompt_without_special_tokens(tiny_base):
    marker = Marker()
    edited = edited_positions(tiny_base(), marker, special=(0, 1), input_ids=IDS, attention_mask=MASK)
    assert edited.tolist() == [[False] * 4 + [True], [False] * 4 + [True]]
    assert marker.prompts[0].tolist() == [[False, False, False, True, True], [False, True, True, True, True]]


def test_given_prompt_lengths_steer_the_continuation_too(tiny_base):
    marker, base = Marker(), tiny_base()
    with run(base, marker) as session, torch.no_grad():
        session.prompt_lengths([2, 4])
        base.model(input_ids=IDS, attention_mask=MASK)
        assert session.steered_tokens.tolist() == [2, 2]
    assert marker.prompts[0].tolist() == [[False, False, True, True, False], [True, True, True, True, False]]


def test_special_tokens_are_never_edited(tiny_base):
    ids = torch.tensor([[9, 10, 1]])
    assert not edited_positions(tiny_base(), Marker(), special=(1,), input_ids=ids).any()


def test_a_row_that_was_fed_a_stop_token_is_no_longer_steered(tiny_base):
    base = tiny_base()
    with run(base, Marker(), stop=(2,)) as session, torch.no_grad():
        cache = DynamicCache(config=base.model.config)
        base.model(input_ids=torch.tensor([[9, 10], [9, 11]]), past_key_values=cache)
        for step in ([[9], [2]], [[9], [9]]):
            base.model(input_ids=torch.tensor(step), past_key_values=cache)
        assert session.steered_tokens.tolist() == [3, 1]


def test_hooks_are_gone_after_the_session_also_when_it_fails(tiny_base):
    base = tiny_base()
    before = base.model(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="boom"), run(base, Marker()):
        raise RuntimeError("boom")
    assert torch.equal(base.model(input_ids=IDS).logits, before)


def test_several_tokens_on_a_cache_are_refused_unless_announced(tiny_base):
    base = tiny_base()
    with run(base, Marker()) as session, torch.no_grad():
        cache = DynamicCache(config=base.model.config)
        base.model(input_ids=IDS, past_key_values=cache)
        with pytest.raises(ValueError, match="chunked prefill or assisted decoding"):
            base.model(input_ids=IDS[:, :2], past_key_values=cache)
        cache = DynamicCache(config=base.model.config)
        base.model(input_ids=IDS, past_key_values=cache)
        cache.batch_select_indices(torch.tensor([1, 1, 0]))
        session.announce_continuation()
        base.model(input_ids=torch.tensor([[9, 9], [9, 10], [9, 11]]), past_key_values=cache)
        assert session.steered_tokens.tolist() == [3, 3, 3]


def test_decoding_without_a_cache_is_refused_unless_prompt_lengths_say_where_the_prompt_ends(tiny_base):
    base = tiny_base()
    with run(base, Marker()) as session, torch.no_grad():
        base.model(input_ids=IDS, use_cache=False)
        base.model(input_ids=IDS.flip(1), use_cache=False)
        longer = torch.cat([IDS.flip(1), torch.tensor([[9], [9]])], dim=1)
        with pytest.raises(ValueError, match="extends the last prefill without a cache"):
            base.model(input_ids=longer, use_cache=False)
        session.prompt_lengths([5, 5])
        base.model(input_ids=longer, use_cache=False)
        assert session.steered_tokens.tolist() == [2, 2]


def test_what_cannot_be_steered_is_refused(tiny_base):
    base = tiny_base()
    cache = DynamicCache(config=base.model.config)
    with torch.no_grad():
        base.model(input_ids=IDS, past_key_values=cache)
    one = torch.tensor([[9], [9]])
    with run(base, Marker()), torch.no_grad():
        with pytest.raises(ValueError, match="did not prefill"):
            base.model(input_ids=one, past_key_values=copy.deepcopy(cache))
        with pytest.raises(ValueError, match="inputs_embeds"):
            base.model(inputs_embeds=torch.zeros(1, 3, 32))
        fresh = DynamicCache(config=base.model.config)
        base.model(input_ids=IDS, past_key_values=fresh)
        with pytest.raises(ValueError, match="changed from 2 to 1 rows"):
            base.model(input_ids=one[:1], past_key_values=fresh)
        with pytest.raises(ValueError, match=r"\[batch, pos\] attention mask"):
            base.model(input_ids=IDS, attention_mask=torch.ones(2, 1, 5, 5, dtype=torch.bool))


class RowMarker(Marker):
    """Its state is the row's first prompt token; remembers the rows it was asked to edit at each step."""

    def condition(self, residual, prompt, *, tally=None):
        self.steps: list[list[int]] = []
        return {"row": torch.arange(len(prompt)) * 10}

    def delta(self, layer, residual, state, steered, *, tally=None):
        self.steps.append(state["row"].tolist())


@pytest.mark.parametrize("given", [True, False], ids=["cache given", "cache made by the model"])
def test_rows_follow_their_cache(tiny_base, given):
    base, marker = tiny_base(), RowMarker()
    with run(base, marker, stop=(2,)) as session, torch.no_grad():
        cache = DynamicCache(config=base.model.config) if given else None
        cache = base.model(input_ids=IDS, past_key_values=cache).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        base.model(input_ids=torch.tensor([[2], [9]]), past_key_values=cache)
        cache.batch_repeat_interleave(2)
        base.model(input_ids=torch.tensor([[9]] * 4), past_key_values=cache)
        cache.batch_select_indices(torch.tensor([3, 0]))
        base.model(input_ids=torch.tensor([[9]] * 2), past_key_values=cache)
        assert session.steered_tokens.tolist() == [4, 1], "the row that was fed the stop token moved"
    assert marker.steps == [[0, 10], [10, 0], [10, 10, 0, 0], [0, 10]]
    assert type(cache) is DynamicCache


def test_what_is_done_to_a_copy_of_the_cache_does_not_move_rows(tiny_base):
    base, marker = tiny_base(), RowMarker()
    with run(base, marker), torch.no_grad():
        cache = base.model(input_ids=IDS).past_key_values
        twin = copy.deepcopy(cache)
        twin.reorder_cache(torch.tensor([1, 0]))
        twin.batch_repeat_interleave(2)
        base.model(input_ids=torch.tensor([[9], [9]]), past_key_values=cache)
    assert marker.steps == [[0, 10], [0, 10]]


@pytest.mark.parametrize("layer", [0, 3], ids=["before the prompt is read", "after the edit"])
def test_after_a_prefill_that_failed_the_cache_before_it_is_refused(tiny_base, layer):
    base = tiny_base()

    def fail(*_):
        raise RuntimeError("out of memory")

    with run(base, Marker()), torch.no_grad():
        cache = base.model(input_ids=IDS).past_key_values
        handle = find_decoder(base.model).layers[layer].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            base.model(input_ids=IDS.flip(0))
        handle.remove()
        with pytest.raises(ValueError, match="did not prefill last"):
            base.model(input_ids=torch.tensor([[9], [9]]), past_key_values=cache)


def test_the_next_turn_of_a_conversation_may_follow_in_the_same_session(tiny_base):
    base = tiny_base()
    with run(base, Marker(), stop=(2,)) as session:
        options = {"max_new_tokens": 3, "pad_token_id": 0, "eos_token_id": None}
        history = base.model.generate(IDS[1:], attention_mask=MASK[1:], **options)
        longer = torch.cat([history, IDS[1:]], dim=1)
        base.model.generate(longer, attention_mask=torch.ones_like(longer), **options)
        assert session.steered_tokens.tolist() == [3]


def test_prompt_lengths_must_lie_within_the_rows(tiny_base):
    base = tiny_base()
    with run(base, Marker()) as session, torch.no_grad():
        with pytest.raises(ValueError, match=r"at least 1, got \[0, 5\]"):
            session.prompt_lengths([0, 5])
        session.prompt_lengths([4, 5])
        with pytest.raises(ValueError, match=r"\[4, 5\] exceed the rows, which have \[3, 5\] tokens"):
            base.model(input_ids=IDS, attention_mask=MASK)


def test_a_session_within_a_session_is_refused_and_one_after_another_is_not(tiny_base):
    base, first = tiny_base(), run(tiny_base(), Marker())
    with first, pytest.raises(ValueError, match="edit each token twice"), run(base, Marker()):
        pass
    with torch.no_grad():
        for ids in (IDS, torch.cat([IDS, IDS], dim=1)):
            with first:
                base.model(input_ids=ids, use_cache=False)
                assert first.steered_tokens.tolist() == [1, 1]


def test_a_copy_made_of_a_steered_model_is_not_steered(tiny_base):
    base = tiny_base()
    with torch.no_grad():
        plain = base.model(input_ids=IDS).logits
        with run(base, Marker()) as session:
            steered = base.model(input_ids=IDS).logits
            twin = copy.deepcopy(base.model)
            assert torch.equal(twin(input_ids=IDS).logits, plain)
            assert not torch.equal(steered, plain)
            assert torch.equal(base.model(input_ids=IDS).logits, steered)
            assert session.steered_tokens.tolist() == [1, 1]
        assert torch.equal(twin(input_ids=IDS).logits, plain)


def test_tokens_that_are_cut_from_the_cache_are_not_counted_and_a_cut_that_cannot_be_followed_is_refused(tiny_base):
    base = tiny_base("llama")
    with run(base, Marker(), stop=(2,)) as session, torch.no_grad():
        cache = base.model(input_ids=IDS).past_key_values
        for token in (9, 10, 11):
            base.model(input_ids=torch.tensor([[token], [token]]), past_key_values=cache)
        cache.crop(-2)
        assert session.steered_tokens.tolist() == [2, 2]
        base.model(input_ids=torch.tensor([[2], [9]]), past_key_values=cache)
        with pytest.raises(ValueError, match="after a row has ended"):
            cache.crop(-1)
        cache = base.model(input_ids=IDS.flip(1)).past_key_values
        with pytest.raises(ValueError, match="cut into its prompt"):
            cache.crop(-1)


def test_layer_outputs_may_be_tuples():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, hidden):
            return hidden + self.weight, "attentions"

    class Config:
        num_hidden_layers = 2

        def get_text_config(self):
            return self

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, input_ids):
            hidden = input_ids[..., None].float()
            for layer in self.layers:
                hidden, rest = layer(hidden)
                assert rest == "attentions"
            return hidden

    class Model(nn.Module):
        config = Config()

        def __init__(self):
            super().__init__()
            self.model = Stack()

        def get_input_embeddings(self):
            return nn.Embedding(10, 1)

        def forward(self, input_ids):
            return self.model(input_ids=input_ids)

    model = Model()
    with Steering(model, Marker(read=0, write=1), special_ids=(), stop_ids=()), torch.no_grad():
        assert model(torch.tensor([[3, 4]]))[..., 0].tolist() == [[5, 7]]


def test_layers_outside_the_model_or_in_the_wrong_order_are_refused(tiny_base):
    with pytest.raises(ValueError, match=r"layers 0\.\.3"):
        run(tiny_base(), Marker(write=4))
    with pytest.raises(ValueError, match="must not come after"):
        run(tiny_base(), Marker(read=3, write=2))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
def test_decoder_layers_are_found_without_name_lists_also_under_peft(tiny_base, family):
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(tiny_base(family).model)
    plain = find_decoder(model)
    assert isinstance(plain.layers, nn.ModuleList)
    assert len(plain.layers) == 4
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert find_decoder(wrapped).layers is plain.layers
