"""Checksums that a JSON document or a line of JSON carries of itself, so that a changed byte is noticed.

A document ends with the key ``checksum``, blake2b of its text with that value left empty. A line ends with the key
``crc``, CRC-32 of the bytes in front of it. What older versions wrote has neither and is read unchecked.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

_DOCUMENT = re.compile(rb'("checksum": ")([0-9a-f]{32})("\n}\n)\Z')
_LINE = re.compile(rb'(, )?"crc": "([0-9a-f]{8})"}\Z')


def digest(content: bytes) -> str:
    """blake2b of 16 bytes, in hex."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def sealed_document(value: Mapping[str, Any]) -> str:
    """``value`` as indented JSON with its checksum; a NaN raises ValueError (it is not JSON)."""
    text = json.dumps({**value, "checksum": ""}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    head, empty, tail = text.rpartition('"checksum": ""')
    return f'{head}{empty[:-1]}{digest(text.encode())}"{tail}'


def read_document(content: bytes) -> Any:
    """The value in a document, without its checksum; ValueError where that is another than the content's."""
    value = json.loads(content)
    if not isinstance(value, dict) or "checksum" not in value:
        return value
    found = _DOCUMENT.search(content)
    if found is None or digest(_DOCUMENT.sub(rb"\1\3", content)) != found[2].decode():
        raise ValueError("its content was changed: it does not match its checksum")
    return {key: inner for key, inner in value.items() if key != "checksum"}


def sealed_line(row: Mapping[str, Any]) -> bytes:
    """``row`` as one line of JSON in ASCII with its checksum and a line feed; a NaN raises ValueError."""
    body = json.dumps(row, allow_nan=False).encode()[:-1]  # ASCII: many readers take U+2028 for the end of a line
    return body + (b", " if row else b"") + b'"crc": "%08x"}\n' % zlib.crc32(body)


def read_line(line: bytes | str) -> Any:
    """The value in a line, without its checksum; ValueError where that is another than the content's."""
    line = line.encode() if isinstance(line, str) else line
    value = json.loads(line)
    if not isinstance(value, dict) or "crc" not in value:
        return value
    found = _LINE.search(line)
    if found is None or int(found[2], 16) != zlib.crc32(line[: found.start()]):
        raise ValueError("the line was changed: it does not match its checksum")
    return {key: inner for key, inner in value.items() if key != "crc"}


def sealed_text(text: str) -> str:
    """``text`` (YAML) with its checksum in a comment at the end."""
    return f"{text}# checksum: {digest(text.encode())}\n"


def check_text(content: bytes, *, sealed: bool) -> None:
    """Raise ValueError where a text is another than its checksum says, or has none although it was ``sealed``."""
    body, found, told = content.rpartition(b"# checksum: ")
    if (found or sealed) and told != digest(body).encode() + b"\n":
        raise ValueError("its content was changed: it does not match its checksum")
