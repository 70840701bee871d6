"""The texts an audit reads: preference triples or plain texts, as token ids with the kind of every token."""

import json
from dataclasses import dataclass
from pathlib import Path

from harness.data.triples import Conversation, load_triples
from harness.files import read_jsonl, read_text
from harness.model.aligned import AlignedModel

KINDS = ("prompt", "chosen", "rejected", "text")
NOT_COUNTED = -1


@dataclass(frozen=True)
class Text:
    """Token ids, and for each its kind (an index; -1: not counted, as BOS, EOS and what another text counts)."""

    ids: tuple[int, ...]
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class Corpus:
    """``texts`` with kinds from `KINDS`, and the different ``prompts`` among them (none in plain texts)."""

    texts: tuple[Text, ...]
    prompts: tuple[Conversation, ...]


def text_of(model: AlignedModel, parts: list[tuple[list[int], int]]) -> Text:
    """One text of (token ids, kind) parts; special tokens are not counted."""
    special = set(model.chat.special_ids)
    ids = tuple(i for part, _ in parts for i in part)
    kinds = tuple(NOT_COUNTED if i in special else kind for part, kind in parts for i in part)
    return Text(ids, kinds)


def read_corpus(path: Path, model: AlignedModel) -> Corpus:
    """Triples (JSONL with prompt, chosen, rejected) or plain texts (JSONL with text, or .txt with one a line).

    Raises ValueError, with file:line where there is one, for what is neither, and for triples that do not fit the
    model's context. Longer plain texts are read in windows of the context's length.
    """
    if path.suffix == ".txt":
        lines = [line.strip() for line in read_text(path, "texts").split("\n")]
        plain = [line for line in lines if line]
        if not plain:
            raise ValueError(f"{path}: the texts file is empty")
        return _plain(plain, model)
    rows = read_jsonl(path, "texts")
    if "chosen" in rows[0][1]:
        return _triples(path, model)
    for number, row in rows:
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise ValueError(f"{path}:{number}: needs a non-empty 'text', or prompt, chosen and rejected on every line")
    return _plain([row["text"] for _, row in rows], model)


def _triples(path: Path, model: AlignedModel) -> Corpus:
    texts, prompts = [], {}
    for triple in load_triples(path):
        try:
            prompt, chosen, rejected = model.triple_ids(triple)
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None
        key = json.dumps(triple.prompt, sort_keys=True)
        # A prompt's tokens count once, however many answers follow it.
        first = NOT_COUNTED if key in prompts else KINDS.index("prompt")
        texts.append(text_of(model, [(prompt, first), (chosen, KINDS.index("chosen"))]))
        texts.append(text_of(model, [(prompt, NOT_COUNTED), (rejected, KINDS.index("rejected"))]))
        prompts[key] = triple.prompt
    return Corpus(tuple(texts), tuple(prompts.values()))


def _plain(lines: list[str], model: AlignedModel) -> Corpus:
    tokenizer, texts = model.tokenizer, []
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]  # type: ignore[arg-type]
    room = model.base.max_length - len(bos)
    for line in lines:
        ids = list(tokenizer.encode(line, add_special_tokens=False))
        for start in range(0, len(ids), room):
            texts.append(text_of(model, [(bos + ids[start : start + room], KINDS.index("text"))]))
    return Corpus(tuple(texts), ())
