"""Steering while transformers or we generate and score: what is refused, rows, and what is counted."""

import pytest
import torch

from harness.data.triples import conversation
from harness.model.intervention import Sums
from tests.unit.test_model_steering import IDS, Marker, run


def generate(base, intervention, **options):
    """(new tokens, steered tokens) of transformers' own generate under a session."""
    ids = torch.tensor([[9, 10, 11, 9, 10], [12, 13, 12, 13, 12]])
    ids = ids[:1] if "prompt_lookup_num_tokens" in options else ids
    with run(base, intervention, special=(0, 1, 2), stop=(2,)) as session:
        output = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, pad_token_id=0, eos_token_id=2, **options
        )
        return output[:, ids.shape[1] :], session.steered_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ({"prefill_chunk_size": 3}, "chunked prefill"),
        ({"use_cache": False}, "without a cache"),
        ({"guidance_scale": 1.5}, "classifier-free guidance"),
        ({"cache_implementation": "static"}, "4-D masks"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_ways_of_generating_that_cannot_be_steered_exactly_are_refused(tiny_base, options, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_base(), Marker(), **options)


def test_continuous_batching_is_refused(tiny_base):
    base, ids = tiny_base(), torch.tensor([[9, 10, 11]])
    with run(base, Marker()), pytest.raises(ValueError, match="packed batches"):
        base.model(input_ids=ids, cu_seq_lens_q=torch.tensor([0, 1, 3]))


def test_several_answers_to_a_prompt_are_rows_of_their_own(tiny_base):
    torch.manual_seed(0)
    tokens, steered = generate(tiny_base(), Marker(), num_return_sequences=3, do_sample=True)
    generated = [row.index(2) + 1 if 2 in row else len(row) for row in tokens.tolist()]
    assert len(tokens) == 6 and steered.tolist() == generated


class Counting(Marker):
    """Counts its prompts and its steered tokens."""

    def tally(self):
        return Sums()

    def condition(self, residual, prompt, *, tally=None):
        tally.add(prompts=torch.tensor(len(prompt)))
        return super().condition(residual, prompt)

    def delta(self, layer, residual, state, steered, *, tally=None):
        tally.add(tokens=steered.sum())
        return super().delta(layer, residual, state, steered)


def test_each_session_counts_for_itself_and_answers_carry_what_was_counted(tiny_base):
    base = tiny_base()
    aligned = base.derive(intervention=Counting())
    with aligned.steering() as session, torch.no_grad():
        cache = base.model(input_ids=IDS).past_key_values
        base.model(input_ids=torch.tensor([[9], [9]]), past_key_values=cache)
    assert session.tally.read() == {"prompts": 2, "tokens": 4}
    with aligned.steering() as session:
        assert session.tally.read() == {}
    prompts = [conversation(text) for text in ("w1 w2", "w3", " ".join(["w4"] * 300), "w5 w6 w7")]
    batches = list(aligned.generate_batches(prompts, max_new_tokens=4, batch_size=2))
    assert [batch.rows for batch in batches] == [(2,), (3, 0), (1,)]
    assert [c.error is None for batch in batches for c in batch.completions] == [False, True, True, True]
    assert [batch.tally and batch.tally["prompts"] for batch in batches] == [None, 2, 1]
    for batch in batches[1:]:
        assert batch.tally["tokens"] == sum(c.steered_tokens for c in batch.completions)
    answers = {row: one for batch in batches for row, one in zip(batch.rows, batch.completions, strict=True)}
    assert aligned.generate(prompts, max_new_tokens=4) == [answers[row] for row in range(4)]
    plain = list(base.generate_batches(prompts[:1], max_new_tokens=1))
    assert [batch.tally for batch in plain] == [None]


def test_scores_come_in_batches_that_carry_what_was_counted(tiny_base):
    base = tiny_base()
    requests = [([5, 6, 7], [8, 9]), ([5], [8]), ([6, 7], [9, 9, 9]), ([5], [9])]
    for model, prompts in ((base.derive(intervention=Counting()), 3), (base, None)):
        batches = list(model.score_batches(requests, batch_size=2))
        assert sorted(row for batch in batches for row in batch.scores) == [0, 1, 2, 3]
        scores = {row: one for batch in batches for row, one in batch.scores.items()}
        assert model.loglikelihood_tokens(requests, batch_size=2) == [scores[row] for row in range(4)]
        if prompts is None:
            assert all(batch.tally is None for batch in batches)
        else:
            assert sum(batch.tally["prompts"] for batch in batches) == prompts
