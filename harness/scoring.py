"""Log-likelihoods of continuations: each distinct context is encoded once and its cache serves all continuations."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from harness.padding import pad_rows, positions_of

if TYPE_CHECKING:
    from harness.model import AlignedModel
    from harness.steering import Steering

Request = tuple[Sequence[int], Sequence[int]]
Score = tuple[float, bool]


def score_continuations(
    aligned: "AlignedModel",
    requests: Sequence[Request],
    *,
    batch_size: int,
    progress: Callable[[int], object] | None = None,
) -> list[Score]:
    """(log-likelihood, is greedy) of each (context ids, continuation ids), in order.

    Contexts are left-padded and prefilled together; then one forward scores all their continuations, projecting
    continuation positions only. ``batch_size`` bounds the rows of either forward. Steering, if any, is conditioned
    on the context and applied from its last position on.
    """
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (context, _) in enumerate(requests):
        by_context[tuple(context)].append(index)
    scores: dict[int, Score] = {}
    for contexts in _groups(by_context, batch_size):
        done = _score_group(aligned, contexts, requests)
        scores.update(done)
        if progress is not None:
            progress(len(done))
    return [scores[index] for index in range(len(requests))]


Group = list[tuple[tuple[int, ...], list[int]]]


def _groups(by_context: dict[tuple[int, ...], list[int]], batch_size: int) -> Iterator[Group]:
    """Contexts of similar length, longest first, at most ``batch_size`` continuations together."""
    group: Group = []
    rows = 0
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


def _score_group(aligned: "AlignedModel", group: Group, requests: Sequence[Request]) -> dict[int, Score]:
    device = aligned.device
    ids, mask = pad_rows([context for context, _ in group], aligned.chat.pad_id, side="left", device=device)
    with aligned.steering() as session:
        cache = DynamicCache(config=aligned.model.config)
        output = aligned.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions_of(mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        first = output.logits[:, -1].float().log_softmax(-1)
        totals, greedy = {}, {}
        for row, (_, indices) in enumerate(group):
            best = int(first[row].argmax())
            for index in indices:
                token = requests[index][1][0]
                totals[index], greedy[index] = float(first[row, token]), token == best
        _add_later_tokens(aligned, group, requests, mask, cache, session, totals, greedy)
    return {index: (totals[index], greedy[index]) for index in totals}


def _add_later_tokens(
    aligned: "AlignedModel",
    group: Group,
    requests: Sequence[Request],
    context_mask: Int[Tensor, "context pos"],
    cache: DynamicCache,
    session: "Steering | None",
    totals: dict[int, float],
    greedy: dict[int, bool],
) -> None:
    """Everything after a continuation's first token, in one forward on the contexts' cache."""
    flat = [(row, i) for row, (_, indices) in enumerate(group) for i in indices if len(requests[i][1]) > 1]
    if not flat:
        return
    device = aligned.device
    rows = torch.tensor([row for row, _ in flat], device=device)
    later = [requests[i][1][:-1] for _, i in flat]
    ids, mask = pad_rows(later, aligned.chat.pad_id, side="right", device=device)
    whole = torch.cat([context_mask[rows], mask], dim=1)
    cache.batch_select_indices(rows)
    if session is not None:
        session.announce_continuation()
    logits: Float[Tensor, "row pos vocab"] = aligned.model(
        input_ids=ids,
        attention_mask=whole,
        position_ids=positions_of(whole)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    ).logits
    for row, (_, index) in enumerate(flat):
        targets = torch.tensor(list(requests[index][1][1:]), device=device)
        logprobs = logits[row, : len(targets)].float().log_softmax(-1)
        totals[index] += float(logprobs.gather(1, targets[:, None]).sum())
        greedy[index] &= bool((logprobs.argmax(-1) == targets).all())
