"""Answers to prompts: batched decoding whose result for a row does not depend on the batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import GenerationConfig, LogitsProcessorList

from harness.padding import pad_rows
from harness.responder import Completion as Completion
from harness.sampling import GumbelNoise, row_seed

if TYPE_CHECKING:
    from harness.model import AlignedModel


def generate_completions(
    aligned: "AlignedModel",
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    max_new_tokens: int,
    *,
    seed: int,
    batch_size: int,
) -> list[Completion]:
    """Answer each prompt (token ids), longest first in batches, in the order given."""
    results: dict[int, Completion] = {}
    room = aligned.base.max_length - max_new_tokens
    for index, prompt in enumerate(prompts):
        if len(prompt) > room:
            reason = (
                f"prompt of {len(prompt)} tokens + {max_new_tokens} new ones exceed the context of "
                f"{aligned.base.max_length}"
            )
            results[index] = Completion("", (), len(prompt), 0, False, reason)
    todo = sorted((i for i in range(len(prompts)) if i not in results), key=lambda i: (-len(prompts[i]), i))
    for start in range(0, len(todo), batch_size):
        rows = todo[start : start + batch_size]
        completions = _generate_batch(
            aligned, [prompts[i] for i in rows], [temperatures[i] for i in rows], max_new_tokens, seed
        )
        results.update(zip(rows, completions, strict=True))
    return [results[i] for i in range(len(prompts))]


def _generate_batch(
    aligned: "AlignedModel",
    prompts: list[Sequence[int]],
    temperatures: list[float],
    max_new_tokens: int,
    seed: int,
) -> list[Completion]:
    chat, device = aligned.chat, aligned.device
    ids, mask = pad_rows(prompts, chat.pad_id, side="left", device=device)
    seeds = [row_seed(seed, prompt) for prompt in prompts]
    sampler = [GumbelNoise(temperatures, seeds, device)] if any(temperatures) else []
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=chat.pad_id,
        eos_token_id=list(chat.stop_ids),
    )
    with aligned.steering() as session:
        output = aligned.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList(sampler),
        )
        steered = [0] * len(prompts) if session is None else session.steered_tokens.tolist()
    completions = []
    for row, new in enumerate(output[:, ids.shape[1] :].tolist()):
        end = next((i + 1 for i, token in enumerate(new) if token in chat.stop_ids), None)
        tokens = tuple(new[:end])
        if aligned.intervention is not None and aligned.intervention.positions == "generation":
            assert steered[row] == len(tokens), f"row {row}: {steered[row]} steered of {len(tokens)} generated tokens"
        text = chat.decode(tokens if end is None else tokens[:-1])
        completions.append(Completion(text, tokens, len(prompts[row]), steered[row], end is not None))
    return completions
