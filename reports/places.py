"""Paths as a report shows them: it says nothing of where on a machine things lie, whoever it is sent to."""

import re
from typing import Any, TypeVar

from harness.files import Document

D = TypeVar("D", bound=Document)
_ROOT = r"(?:file://)?(?:/(?!/)|[A-Za-z]:[\\/](?![\\/])|(?:\.\./){3,})"
_QUOTED = re.compile(rf"(?<=(['\"`])){_ROOT}[^'\"`\n]*(?=\1)")
_BARE = re.compile(rf"(?<![\w/.~…\\-]){_ROOT}[^\s'\"`,;:()\[\]{{}}<>|*?]*")


def shown(value: Any) -> Any:
    """``value`` with every absolute path in its texts, keys included, cut to its last two parts: ``…/models/pythia``.

    So is a relative one that climbs more than two folders. Lists, tuples and dicts are copied; anything else that is
    no text is returned as it is.
    """
    if isinstance(value, str):
        return _BARE.sub(_cut, _QUOTED.sub(_cut, value))
    if isinstance(value, dict):
        return {shown(key): shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shown, value))
    return value


def document_shown(document: D) -> D:
    """The same document with the paths in all of its texts cut."""
    return type(document).model_validate(shown(document.model_dump()))


def _cut(match: re.Match[str]) -> str:
    path = match[0].rstrip(".")
    names = [name for name in re.split(r"[\\/]+", path) if name not in ("", "..", "file:")]
    absolute = not path.startswith("../")
    if len(names) < 1 + absolute:  # "/" or "/v1"
        return match[0]
    return "…/" + "/".join(names[max(absolute, len(names) - 2) :]) + match[0][len(path) :]
