"""Log-likelihoods of continuations: what contexts share is encoded once, a context once for all its continuations."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from harness.model.batching import cut_batches, pad_rows, positions_of
from harness.model.finite import not_finite
from harness.model.prefix_cache import CachedRows, Family, Tokens, can_share, encode, extend, extended_logits, families
from harness.model.steering import Runtime, Steering
from harness.pulse import beat

Request = tuple[Sequence[int], Sequence[int]]
Score = tuple[float, bool]

Group = list[tuple[Tokens, list[int]]]
"""Contexts, each with some of its requests."""

_SLICE = 1 << 24
"""Logits that are normalised at once: 64 MB as float32."""
_FORWARD = {"cpu": 64, "cuda": 1024}
"""What a forward costs beside its tokens, in tokens: small batches waste time on it, large ones on padding."""


@dataclass(frozen=True)
class ScoredBatch:
    """Requests that were scored together: place among those asked for -> score.
    ``tally``: what the steering session counted, as JSON; None where nothing was steered or counted."""

    scores: dict[int, Score]
    tally: dict[str, Any] | None


@torch.no_grad()
def score_batches(runtime: Runtime, requests: Sequence[Request], *, batch_size: int) -> Iterator[ScoredBatch]:
    """(log-likelihood, is greedy) of each (context ids, continuation ids), each batch as soon as it is done.

    A context is encoded once for all its continuations, and only positions that predict a continuation's token are
    projected onto the vocabulary. ``batch_size`` bounds the rows of every forward. Unless the model is steered, a
    prefix that contexts share is encoded once, too. Steering is conditioned on the context and applied from its last
    position on, so a steered model's contexts are encoded whole: the condition sees every token of them. ValueError
    with the layer where a log-likelihood is NaN.
    """
    score = _score_by_prefix if can_share(runtime) else _score_by_context
    for batch in score(runtime, requests, batch_size):
        for index, (value, _) in batch.scores.items():
            if math.isnan(value):
                context, continuation = requests[index]
                found = f"the log-likelihood of {len(continuation)} tokens after {len(context)} is NaN"
                raise not_finite(runtime, context, continuation[:-1], found)
        beat()
        yield batch


def _score_by_prefix(runtime: Runtime, requests: Sequence[Request], batch_size: int) -> Iterator[ScoredBatch]:
    """Prefixes, the contexts on their caches, and on these rows of the context and all but a continuation's last
    token, which serve all continuations that end differently."""
    by_context: dict[Tokens, dict[Tokens, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (context, continuation) in enumerate(requests):
        by_context[tuple(context)][tuple(continuation[:-1])].append(index)
    forward = _FORWARD.get(runtime.device.type, 256)
    for parents, contexts in _encoded(runtime, families(list(by_context)), batch_size):
        rows = [(owner, *row) for owner, context in enumerate(contexts) for row in by_context[context].items()]
        rows.sort(key=lambda row: -len(row[1]))
        for batch in cut_batches([len(tail) + 1 for _, tail, _ in rows], batch_size, forward=forward):
            part = [rows[i] for i in batch]
            fed = len(part[0][1]) + 1
            sequences = [contexts[owner] + tail for owner, tail, _ in part]
            owners = [owner for owner, _, _ in part]
            logits = extended_logits(runtime, parents, owners, sequences, fed=fed)
            places = [(row, logits.shape[1] - len(tail) - 1, i) for row, (_, tail, of) in enumerate(part) for i in of]
            yield ScoredBatch(_scores(logits, places, {i: requests[i][1] for _, _, i in places}), None)


def _encoded(runtime: Runtime, found: Sequence[Family], batch_size: int) -> Iterator[tuple[CachedRows, list[Tokens]]]:
    """Every context in some rows, at most ``batch_size`` together."""
    forward = _FORWARD.get(runtime.device.type, 256)
    shared = sorted((family for family in found if family.shared), key=lambda family: -family.shared)
    for batch in cut_batches([family.shared for family in shared], batch_size, forward=forward):
        owners = [shared[i] for i in batch]
        prefixes = encode(runtime, [family.prefix for family in owners])
        members = [(len(c) - family.shared, row, c) for row, family in enumerate(owners) for c in family.members]
        members.sort(key=lambda member: -member[0])
        for part in cut_batches([max(1, own) for own, _, _ in members], batch_size, forward=forward):
            _, rows, contexts = zip(*(members[i] for i in part), strict=True)
            own = max(1, members[part.start][0])
            yield extend(runtime, prefixes, rows, contexts, fed=own), list(contexts)
    alone = sorted((c for family in found if not family.shared for c in family.members), key=lambda c: -len(c))
    for batch in cut_batches([len(c) for c in alone], batch_size, forward=forward):
        contexts = [alone[i] for i in batch]
        yield encode(runtime, contexts), contexts


def _score_by_context(runtime: Runtime, requests: Sequence[Request], batch_size: int) -> Iterator[ScoredBatch]:
    """Contexts are prefilled together, whole; then one forward scores what follows their continuations' first tokens.

    The form that steering takes: a session's rows follow one cache, and a prefill is a row's prompt.
    """
    by_context: dict[Tokens, list[int]] = defaultdict(list)
    for index, (context, _) in enumerate(requests):
        by_context[tuple(context)].append(index)
    for group in _groups(by_context, batch_size):
        with runtime.steering() as session:
            scores = score_group(runtime, group, requests, session)
        yield ScoredBatch(scores, None if session is None else session.counts())


def _groups(by_context: dict[Tokens, list[int]], batch_size: int) -> Iterator[Group]:
    """Contexts of similar length, longest first, at most ``batch_size`` continuations together."""
    group, rows = [], 0
    for context in sorted(by_context, key=lambda c: (-len(c), c)):
        indices = by_context[context]
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            if group and rows + len(part) > batch_size:
                yield group
                group, rows = [], 0
            group.append((context, part))
            rows += len(part)
    if group:
        yield group


@torch.no_grad()
def score_group(
    runtime: Runtime, group: Group, requests: Sequence[Request], session: Steering | None
) -> dict[int, Score]:
    """(log-likelihood, is greedy) of the requests of some contexts in one prefill, whose rows are the contexts in the
    order of ``group``; ``session`` is entered. A context may stand there several times, with other requests."""
    pad, device = runtime.chat.pad_id, runtime.device
    ids, mask = pad_rows([context for context, _ in group], pad, side="left", device=device)
    cache = DynamicCache(config=runtime.model.config)
    first = runtime.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    places = [(row, 0, i) for row, (_, indices) in enumerate(group) for i in indices]
    scores = _scores(first, places, {i: requests[i][1][:1] for _, _, i in places})
    longer = [(row, i) for row, _, i in places if len(requests[i][1]) > 1]
    if not longer:
        return scores
    later, later_mask = pad_rows([requests[i][1][:-1] for _, i in longer], pad, side="right", device=device)
    rows = torch.tensor([row for row, _ in longer], device=device)
    whole = torch.cat([mask[rows], later_mask], dim=1)
    cache.reorder_cache(rows)  # type: ignore[arg-type]  # each layer's where it is, in a model that is spread over devices
    if session is not None:
        session.announce_continuation()
    logits = runtime.model(
        input_ids=later,
        attention_mask=whole,
        position_ids=positions_of(whole)[:, -later.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    ).logits
    places = [(row, 0, i) for row, (_, i) in enumerate(longer)]
    for i, (value, greedy) in _scores(logits, places, {i: requests[i][1][1:] for _, i in longer}).items():
        scores[i] = (scores[i][0] + value, scores[i][1] and greedy)
    return scores


def _scores(
    logits: Float[Tensor, "row pos vocab"], places: list[tuple[int, int, int]], targets: dict[int, Sequence[int]]
) -> dict[int, Score]:
    """Sum of the target tokens' log-probabilities and whether all are the likeliest, by request.

    ``places``: (row, first position, request), the targets being predicted from there on.
    """
    cells = [
        (row, first + step, token, slot)
        for slot, (row, first, i) in enumerate(places)
        for step, token in enumerate(targets[i])
    ]
    table = torch.tensor(cells, device=logits.device)
    total = table.new_zeros(len(places), dtype=torch.float64)
    misses = table.new_zeros(len(places))
    for part in table.split(max(1, _SLICE // logits.shape[-1])):
        rows, columns, tokens, slots = part.unbind(1)
        scored = logits[rows, columns].float()
        values = scored.gather(1, tokens[:, None])[:, 0] - scored.logsumexp(-1)
        total.index_add_(0, slots, values.double())
        misses.index_add_(0, slots, (scored.argmax(-1) != tokens).long())
    return {
        i: (value, miss == 0) for (_, _, i), value, miss in zip(places, total.tolist(), misses.tolist(), strict=True)
    }
