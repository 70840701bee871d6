"""The text that SAEs are trained on: files -> token ids of documents and chat conversations, split into two parts."""

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dspa.saes.quality import Text, texts_of
from harness.data.triples import ROLES, Conversation, conversation, load_triples
from harness.files import read_jsonl, read_text
from harness.model.aligned import AlignedModel

_END_OF_DOCUMENT = re.compile(r"^[ \t]*<\|endoftext\|>[ \t]*$", re.MULTILINE)
KINDS = ("triples: prompt, chosen, rejected", "conversations: messages", "documents: text")
"""What a line of a JSONL file can be, with its keys."""


@dataclass(frozen=True)
class Source:
    """A file of text: ``sha256`` of its bytes, what it holds and how many ``texts`` were made of that."""

    path: str
    sha256: str
    kind: str
    texts: int

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True)
class Corpus:
    """Texts by what they are split by: ``groups`` are those of one prompt, conversation or document, in file order."""

    sources: tuple[Source, ...]
    groups: tuple[tuple[Text, ...], ...]

    def split(self, held_out: float, seed: int) -> tuple[list[Text], list[Text]]:
        """(train, held out): the share ``held_out`` of the groups, rounded, at least one, goes to the second list."""
        order = list(range(len(self.groups)))
        random.Random(f"held out:{seed}").shuffle(order)
        chosen = set(order[: max(1, round(held_out * len(order)))])
        parts: tuple[list[Text], list[Text]] = ([], [])
        for index, group in enumerate(self.groups):
            parts[index in chosen].extend(group)
        return parts


def read_corpus(base: AlignedModel, paths: Sequence[Path], context: int) -> Corpus:
    """The texts of all files as token ids.

    Triples (JSONL of prompt, chosen, rejected) are two conversations with one prompt, whose tokens count once; JSONL of
    messages are conversations, all in the model's chat format and whole. JSONL of text and .txt files are documents,
    tokenised as they are and cut into pieces of at most ``context`` tokens. In a .txt file a line of <|endoftext|>
    ends a document; a file without one is a single document, which is split by its pieces.

    The first token of every text does not count. Raises ValueError (file:line) for what is none of that, for a file
    given twice, and for a conversation that does not fit the model's context.
    """
    groups: dict[str, list[Text]] = {}
    sources: list[Source] = []
    for path in paths:
        found = _read(base, path, context)
        texts = sum(len(texts) for _, texts in found[1])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if any(source.sha256 == digest for source in sources):
            raise ValueError(f"--text {str(path)!r} is given twice (the same content); name every file once")
        sources.append(Source(str(path), digest, found[0], texts))
        for key, of_group in found[1]:
            groups.setdefault(key, []).extend(_after_first(text) for text in of_group)
    return Corpus(tuple(sources), tuple(tuple(texts) for texts in groups.values()))


def _after_first(text: Text) -> Text:
    """Without the first token, on which models park attention: its residual is nothing like the others'."""
    return replace(text, start=max(text.start, 1))


def _read(base: AlignedModel, path: Path, context: int) -> tuple[str, list[tuple[str, list[Text]]]]:
    """(kind, texts of each group under the key that tells groups apart in all files)."""
    if path.suffix.lower() == ".txt":
        return "documents", _text_file(base, read_text(path, "--text"), context)
    if path.suffix.lower() not in (".jsonl", ".json"):
        raise ValueError(f"--text {str(path)!r}: files are .jsonl ({'; '.join(KINDS)}) or .txt (documents)")
    rows = read_jsonl(path, "--text")
    if {"prompt", "chosen", "rejected"} & set(rows[0][1]):
        triples = load_triples(path)
        return "triples", [(_key(triple.prompt), texts_of(base, [triple])) for triple in triples]
    kind = next((key for key in ("messages", "text") if key in rows[0][1]), None)
    if kind is None:
        raise ValueError(
            f"{path}:{rows[0][0]}: a line has keys {', '.join(sorted(rows[0][1])) or 'none'}; allowed: "
            f"{'; '.join(KINDS)}"
        )
    groups = []
    for number, row in rows:
        try:
            groups.append(_conversation(base, row) if kind == "messages" else _document(base, row, context))
        except ValueError as problem:
            raise ValueError(f"{path}:{number}: {problem}") from None
    return ("conversations" if kind == "messages" else "documents"), groups


def _key(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _conversation(base: AlignedModel, row: dict[str, Any]) -> tuple[str, list[Text]]:
    turns: Conversation = conversation(_messages(row.get("messages")))
    if turns[-1]["role"] == "assistant":
        ids = [*base.prompt_ids(turns[:-1]), *base.chat.response_ids(turns[-1]["content"])]
        key = turns[:-1]  # as of a triple with this prompt
    else:
        ids, key = base.prompt_ids(turns), turns
    if len(ids) > base.base.max_length:
        raise ValueError(f"{len(ids)} tokens are more than the context of {base.base.max_length}; leave the line out")
    return _key(key), [Text(tuple(ids), 0)]


def _messages(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("'messages' must be a non-empty list of {role, content} messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"'messages'[{index}] must be an object with role and content strings")
        if message.get("role") not in ROLES:
            raise ValueError(f"'messages'[{index}] has role {message.get('role')!r}; allowed: {', '.join(ROLES)}")
    if all(message["role"] == "system" for message in value) or value[0]["role"] == "assistant":
        raise ValueError("'messages' must have a user turn before the first answer")
    return value


def _document(base: AlignedModel, row: dict[str, Any], context: int) -> tuple[str, list[Text]]:
    if not isinstance(row.get("text"), str) or not row["text"].strip():
        raise ValueError("'text' must be a non-empty string")
    return _key(row["text"]), _pieces(base, row["text"], context)


def _text_file(base: AlignedModel, text: str, context: int) -> list[tuple[str, list[Text]]]:
    documents = [part.strip() for part in _END_OF_DOCUMENT.split(text) if part.strip()]
    if len(documents) == 1:
        return [(_key([documents[0], i]), [piece]) for i, piece in enumerate(_pieces(base, documents[0], context))]
    return [(_key(document), _pieces(base, document, context)) for document in documents]


def _pieces(base: AlignedModel, text: str, context: int) -> list[Text]:
    """Consecutive pieces of at most ``context`` tokens, each begun with BOS where the tokenizer begins texts so."""
    # Not verbose: it would warn of a long text, which is about to be cut.
    ids: list[int] = list(base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]
    bos = base.tokenizer.bos_token_id
    begin = [int(bos)] if bos is not None and list(base.tokenizer.encode("a"))[:1] == [bos] else []  # type: ignore[arg-type]
    step = context - len(begin)
    return [Text((*begin, *ids[at : at + step]), 0) for at in range(0, len(ids), step)]
