"""Triples -> rows of token ids as TRL's trainers take them, in the chat format of inference."""

from collections.abc import Sequence
from typing import Any

from harness.data.triples import Triple
from harness.model.aligned import AlignedModel

IGNORED = -100  # label of positions without a loss, as torch has it
Row = dict[str, Any]
"""What a trainer's collator takes; ``length``, of the (longer) text in tokens, is for the sampler."""
TokenTriple = tuple[list[int], list[int], list[int]]
"""(prompt, chosen, rejected)"""


def token_triples(base: AlignedModel, triples: Sequence[Triple]) -> list[TokenTriple]:
    """Ids of (prompt, chosen, rejected) in the chat format of inference; answers end with the end-of-turn token.

    Raises ValueError for a triple that does not fit the model's context.
    """
    end = [base.chat.end_id]
    ids = (base.triple_ids(triple) for triple in triples)
    return [(prompt, chosen + end, rejected + end) for prompt, chosen, rejected in ids]


def preference_rows(base: AlignedModel, triples: Sequence[Triple]) -> list[Row]:
    """One row a triple, as TRL's DPOTrainer takes it."""
    return [
        {
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "length": len(prompt) + max(len(chosen), len(rejected)),
        }
        for prompt, chosen, rejected in token_triples(base, triples)
    ]


def answer_lengths(rows: Sequence[Row]) -> list[int]:
    """Tokens of both answers of each of `preference_rows`."""
    return [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]


def answer_rows(base: AlignedModel, triples: Sequence[Triple]) -> list[Row]:
    """One row a triple, as TRL's SFTTrainer takes it: prompt and chosen answer, the prompt without labels."""
    return [
        {"input_ids": prompt + chosen, "labels": [IGNORED] * len(prompt) + chosen, "length": len(prompt) + len(chosen)}
        for prompt, chosen, _ in token_triples(base, triples)
    ]


def labelled_rows(base: AlignedModel, triples: Sequence[Triple]) -> list[Row]:
    """One row a triple, as TRL's CPO and ORPO trainers take it: ids, masks and labels (none on the prompt)."""
    rows = []
    for prompt, chosen, rejected in token_triples(base, triples):
        row: Row = {"length": len(prompt) + max(len(chosen), len(rejected))}
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            row[f"{name}_input_ids"] = prompt + answer
            row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{name}_labels"] = [IGNORED] * len(prompt) + answer
        rows.append(row)
    return rows
