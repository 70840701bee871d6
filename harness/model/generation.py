"""Answers to prompts: batched decoding whose result for a row does not depend on the batch."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from harness.model.batching import pad_rows
from harness.model.chat import ChatFormat
from harness.model.finite import ChosenFinite, not_finite
from harness.model.steering import Runtime
from harness.model.trace import marked, pieces
from harness.responder import Completion


@dataclass(frozen=True)
class Batch:
    """Answers that were decoded together. ``rows``: their places among the prompts asked for. ``tally``: what the
    steering session counted, as JSON (see `Tally`); None where nothing was steered or counted."""

    rows: tuple[int, ...]
    completions: tuple[Completion, ...]
    tally: dict[str, Any] | None


@torch.no_grad()
def generate_batches(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    max_new_tokens: int,
    *,
    seed: int,
    batch_size: int,
) -> Iterator[Batch]:
    """Answer each prompt (token ids), longest first, each batch as soon as it is done.

    Prompts that do not fit the context come first, as a batch of completions with ``error``. ValueError with step and
    layer where logits are NaN or infinite.
    """
    long = without_room(prompts, runtime.max_length, max_new_tokens)
    if long is not None:
        yield long
    left_out = () if long is None else long.rows
    todo = sorted(set(range(len(prompts))) - set(left_out), key=lambda i: (-len(prompts[i]), i))
    for start in range(0, len(todo), batch_size):
        rows = tuple(todo[start : start + batch_size])
        completions, tally = _generate_batch(
            runtime, [prompts[i] for i in rows], [temperatures[i] for i in rows], max_new_tokens, seed
        )
        yield Batch(rows, tuple(completions), tally)


def temperatures_of(
    temperature: float | Sequence[float], count: int, max_new_tokens: int, batch_size: int
) -> list[float]:
    """The temperature of each of ``count`` prompts; ValueError for settings that cannot be."""
    one_for_all = isinstance(temperature, int | float)
    temperatures: list[float] = [temperature] * count if one_for_all else list(temperature)
    if len(temperatures) != count:
        raise ValueError(f"{len(temperatures)} temperatures for {count} conversations")
    if not all(0 <= one < inf for one in temperatures) or max_new_tokens < 1 or batch_size < 1:
        raise ValueError("temperature must be >= 0 and finite, max_new_tokens and batch_size >= 1")
    return temperatures


def without_room(prompts: Sequence[Sequence[int]], max_length: int, max_new_tokens: int) -> Batch | None:
    """The prompts that do not fit a context of ``max_length`` with an answer, as completions with ``error``."""
    long = {row: len(ids) for row, ids in enumerate(prompts) if len(ids) > max_length - max_new_tokens}
    excess = f"tokens + {max_new_tokens} new ones exceed the context of {max_length}"
    errors = tuple(Completion("", (), n, 0, False, f"prompt of {n} {excess}") for n in long.values())
    return Batch(tuple(long), errors, None) if long else None


def _generate_batch(
    runtime: Runtime, prompts: list[Sequence[int]], temperatures: list[float], max_new_tokens: int, seed: int
) -> tuple[list[Completion], dict[str, Any] | None]:
    chat, device = runtime.chat, runtime.device
    ids, mask = pad_rows(prompts, chat.pad_id, side="left", device=device)
    seeds = [row_seed(seed, prompt) for prompt in prompts]
    sampler, finite = [GumbelNoise(temperatures, seeds, device)] if any(temperatures) else [], ChosenFinite()
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=chat.pad_id,
        eos_token_id=list(chat.stop_ids),
    )
    with runtime.steering() as session:
        if session is not None:
            session.note_edits()
        output = runtime.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([finite, *sampler]),
        )
        steered = [0] * len(prompts) if session is None else session.steered_tokens.tolist()
        touched = None if session is None else session.edited_steps.tolist()
    completions, broken = [], [row.index(False) if False in row else None for row in finite.steps(output).T.tolist()]
    for row, new in enumerate(output[:, ids.shape[1] :].tolist()):
        end = next((i + 1 for i, token in enumerate(new) if token in chat.stop_ids), None)
        tokens = tuple(new[:end])
        if (step := broken[row]) is not None and step < len(tokens):
            found = (
                f"logits are NaN or infinite at step {step + 1} of the answer to a prompt of {len(prompts[row])} tokens"
            )
            raise not_finite(runtime, prompts[row], tokens[:step], found)
        if runtime.intervention is not None and runtime.intervention.positions == "generation":
            assert steered[row] == len(tokens), f"row {row}: {steered[row]} steered of {len(tokens)} generated tokens"
        said = tokens if end is None else tokens[:-1]
        edited = None if touched is None else _edited_parts(chat, said, touched[row])
        made = Completion(chat.decode(said), tokens, len(prompts[row]), steered[row], end is not None, edited=edited)
        completions.append(made)
    return completions, None if session is None else session.counts()


def _edited_parts(chat: ChatFormat, said: Sequence[int], touched: Sequence[bool]) -> tuple[tuple[int, int], ...] | None:
    """Where in the answer tokens were edited; None for a tokenizer whose pieces do not make the text."""
    parts = pieces(partial(chat.tokenizer.decode, skip_special_tokens=True), said)
    return marked(parts, touched[: len(said)]) if "".join(parts).strip() == chat.decode(tuple(said)) else None


def row_seed(seed: int, ids: Sequence[int]) -> int:
    """A row's own seed, from the request's seed and the prompt's ids."""
    digest = hashlib.sha256(f"{seed}:{','.join(map(str, ids))}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class GumbelNoise(LogitsProcessor):
    """Turns greedy decoding into sampling: argmax(logits / T + Gumbel) is a draw from softmax(logits / T).

    Rows with temperature 0 stay greedy. One random generator a row, so neighbours and batch size change nothing.
    """

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        self._temperatures = temperatures
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        noisy = scores.clone()
        for row, (temperature, generator) in enumerate(zip(self._temperatures, self._generators, strict=True)):
            if temperature > 0:
                noise = torch.empty_like(scores[row]).exponential_(generator=generator)
                noisy[row] = scores[row] / temperature - noise.log()
        return noisy
