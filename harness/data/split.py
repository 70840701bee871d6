"""A source of preference data, split into files that share no prompt."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.sources import source_hash
from harness.data.triples import Triple, TripleFile, in_drawn_order, normal, prompt_count, triples_hash
from harness.files import atomic_folder, write_json, write_jsonl

_PART = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)=([0-9]*\.?[0-9]+)")
DEFAULT_PARTS = {"train": 0.8, "validation": 0.1, "heldout": 0.1}


@dataclass(frozen=True)
class Split:
    """A source's triples by part; ``left`` are those of no part, where the shares sum to less than 1."""

    source: TripleFile
    parts: Mapping[str, list[Triple]]
    left: list[Triple]


def parse_parts(texts: Sequence[str]) -> dict[str, float]:
    """``["train=0.6", "heldout=0.2"]`` as {name: share}; ValueError for what is no part, and for shares above 1."""
    parts: dict[str, float] = {}
    for text in texts:
        found = _PART.fullmatch(text)
        if found is None or not 0 < float(found[2]) <= 1:
            raise ValueError(
                f"--part {text!r} is no part; give NAME=SHARE such as train=0.6, with a name of letters, digits, '-' "
                "and '_', and a share above 0 and at most 1"
            )
        name = found[1]
        if name == "split" or name in parts:
            raise ValueError(f"--part {text!r}: the name {name!r} is taken; give each part another one")
        parts[name] = float(found[2])
    if (whole := sum(parts.values())) > 1 + 1e-9:
        raise ValueError(f"the shares of all --part sum to {whole:.6g}; they must sum to at most 1")
    return parts


def split_parts(source: TripleFile, shares: Mapping[str, float], seed: int) -> Split:
    """Parts of about these shares of the prompts, the same on every machine; each triple once.

    Prompts whose first user turns are the same up to case and spacing are in one part: they may be two cuts from one
    conversation, whose earlier turns the longer one repeats. ValueError for a part that would be empty.
    """
    triples = list(source.distinct.values())
    groups = {_first_turn(triple) for triple in triples}
    ranked = in_drawn_order(groups, seed)
    part_of: dict[str, str] = {}
    start, share_so_far = 0, 0.0
    for name, share in shares.items():
        share_so_far += share
        end = min(round(share_so_far * len(ranked)), len(ranked))
        part_of |= dict.fromkeys(ranked[start:end], name)
        if start == end:
            raise ValueError(
                f"part {name!r} would be empty: {share:g} of {len(ranked)} different prompts is none; give it a larger "
                "share, or more data"
            )
        start = end
    parts: dict[str, list[Triple]] = {name: [] for name in shares}
    left: list[Triple] = []
    for triple in triples:
        name = part_of.get(_first_turn(triple))
        (left if name is None else parts[name]).append(triple)
    return Split(source, parts, left)


def write_split(split: Split, path: str | Path, shares: Mapping[str, float], seed: int, out: Path) -> dict[str, Any]:
    """Write each part as ``out/<part>.jsonl`` and split.json, whose content is returned; all files or none."""
    described = {
        "source": {
            "path": str(path),
            "hash": source_hash(path),
            "rows": len(split.source.rows.rows),
            "triples": len(split.source.distinct),
            "repeated": len(split.source.numbered) - len(split.source.distinct),
            "bad_rows": [{split.source.rows.unit: number, "why": why} for number, why in split.source.refused],
            "notes": list(split.source.notes),
        },
        "seed": seed,
        "parts": {
            name: {"share": shares[name], "file": f"{name}.jsonl", **_counts(triples), "hash": triples_hash(triples)}
            for name, triples in split.parts.items()
        },
        "left_over": _counts(split.left),
    }
    with atomic_folder(out) as folder:
        for name, triples in split.parts.items():
            write_jsonl(folder / f"{name}.jsonl", map(_row, triples))
        write_json(folder / "split.json", described)
    return described


def _counts(triples: Sequence[Triple]) -> dict[str, int]:
    return {"triples": len(triples), "prompts": prompt_count(triples)}


def _row(triple: Triple) -> dict[str, Any]:
    """A line of our own triples format; one user turn is written as text."""
    alone = len(triple.prompt) == 1 and triple.prompt[0]["role"] == "user"
    row = {"prompt": triple.prompt[0]["content"] if alone else list(triple.prompt)}
    row |= {"chosen": triple.chosen, "rejected": triple.rejected}
    return row | ({"source": triple.source} if triple.source else {})


def _first_turn(triple: Triple) -> str:
    first = next(message for message in triple.prompt if message["role"] == "user")
    return json.dumps(normal(first["content"]))
