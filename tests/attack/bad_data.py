"""Triples, questions, references and prompts that are not what they should be, in every file that a suite names."""

import json
from collections.abc import Iterator
from typing import Any

from tests.attack.bad_models import with_content
from tests.attack.ground import Case, rows

HALF = "w1 \ud800"
LONG = "w1 " * 400
LINES: dict[str, bytes] = {
    "empty": b"",
    "blank lines": b"\n\n",
    "no JSON": b"hello\n",
    "truncated": b'{"prompt": "w1", "chos',
    "a number a line": b"1\n2\n",
    "null": b"null\n",
    "a list a line": b"[1]\n",
    "an empty list": b"[]",
    "a list of numbers": b"[1, 2]",
    "not UTF-8": b'{"prompt": "\xff"}\n',
    "UTF-16": '{"prompt": "w1"}\n'.encode("utf-16"),
    "NUL bytes": b"\0" * 64,
    "100,000 brackets": b"[" * 100_000,
    "100,000 keys deep": b'{"a":' * 100_000,
    "5000 digits": b'{"prompt": ' + b"9" * 5000 + b"}\n",
    "NaN": b"NaN\n",
    "a web page": b"<!DOCTYPE html><html>404</html>\n",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}
FILES = ("triples.jsonl", "heldout.jsonl", "prompts.jsonl", "questions.jsonl", "references.jsonl")
GOOD: dict[str, dict[str, Any]] = {
    "triples.jsonl": rows(1)[0],
    "heldout.jsonl": rows(1, first=20)[0],
    "prompts.jsonl": {"prompt": "w1 w30"},
    "questions.jsonl": {"question_id": 9, "category": "writing", "turns": ["w5 w31", "w32"]},
    "references.jsonl": {
        "answer_id": "a",
        "tstamp": 0.0,
        "question_id": 2,
        "model_id": "gpt-4",
        "choices": [{"index": 0, "turns": ["w1", "w2"]}],
    },
}
ROWS: dict[str, tuple[tuple[str, Any], ...]] = {
    "triples.jsonl": (
        *((key, value) for key in ("chosen", "rejected") for value in (None, 5, "", " ", [], {}, HALF, LONG)),
        *(("prompt", value) for value in (None, 5, "", [], {}, HALF, LONG)),
        ("prompt", [{"role": "user"}]),
        ("prompt", [{"role": "nobody", "content": "w1"}]),
        ("prompt", [{"role": "assistant", "content": "w1"}]),
        ("prompt", [{"role": "user", "content": HALF}]),
        ("prompt", [{"role": "user", "content": 5}]),
        ("prompt", [{"role": "user", "content": "w1"}, {"role": "system", "content": "w1"}]),
    ),
    "heldout.jsonl": (("chosen", HALF), ("chosen", LONG), ("prompt", HALF), ("rejected", None)),
    "prompts.jsonl": tuple(("prompt", value) for value in (None, 5, "", [], {}, HALF, LONG, [{"role": "user"}])),
    "questions.jsonl": (
        *(("turns", value) for value in (None, 5, "w1", [], [5], [""], [HALF, "w1"], [LONG, "w1"], {})),
        *(("question_id", value) for value in (None, "x", 1.5, [], 1)),
        *(("category", value) for value in (None, 5, "nope", [], HALF)),
    ),
    "references.jsonl": (
        *(("choices", value) for value in (None, 5, [], {}, [5], [{}], [{"index": 0, "turns": "w1"}])),
        ("choices", [{"index": 0, "turns": ["w1", 5]}]),
        ("choices", [{"index": 0, "turns": [HALF, "w1"]}]),
        *(("question_id", value) for value in (None, "x", [])),
    ),
}
"""(key, a value that cannot be) of a row of each file."""


def _extra(file: str, row: dict[str, Any]) -> bytes:
    return json.dumps(GOOD[file] | row).encode() + b"\n"


def cases() -> Iterator[Case]:
    """All of them."""
    for file in FILES:
        for name, content in LINES.items():
            yield Case(f"contents of {file}", name, with_content(file, content), said=file)
        for key, value in ROWS[file]:
            change = with_content(file, lambda there, file=file, row={key: value}: there + _extra(file, row))
            said = "context" if LONG in (value, *(value if isinstance(value, list) else ())) else file
            yield Case(f"rows of {file}", f"{key}: {str(value)[:40]!r}", change, said=said)
        for key in GOOD[file]:
            row = {name: value for name, value in GOOD[file].items() if name != key}
            if (file, key) in _OPTIONAL:
                continue
            change = with_content(file, lambda there, row=row: there + json.dumps(row).encode() + b"\n")
            yield Case(f"rows of {file}", f"no {key}", change, said=file)
    asked = with_content("triples.jsonl", lambda there: there + _extra("triples.jsonl", {"prompt": "w1 w31"}))
    yield Case("rows of triples.jsonl", "an evaluation's question", asked, said="triples.path")
    fine = {
        "Windows' line ends": with_content("triples.jsonl", lambda there: there.replace(b"\n", b"\r\n")),
        "no line end at the end": with_content("triples.jsonl", lambda there: there[:-1]),
        "a triple twice": with_content("triples.jsonl", lambda there: there + there.splitlines(True)[0]),
        "a key more": with_content("triples.jsonl", lambda there: there + _extra("triples.jsonl", {"colour": 5})),
        "a JSON list": with_content("triples.jsonl", json.dumps(rows(12)).encode()),
        "emoji": with_content("triples.jsonl", lambda there: there + _extra("triples.jsonl", {"chosen": "🎉 漢字"})),
        "U+2028": with_content("triples.jsonl", lambda there: there + _extra("triples.jsonl", {"chosen": "a\u2028b"})),
    }
    for name, change in fine.items():
        yield Case("data in order", name, change, accepted=True)


_OPTIONAL = {("references.jsonl", "answer_id"), ("references.jsonl", "tstamp"), ("references.jsonl", "model_id")}
