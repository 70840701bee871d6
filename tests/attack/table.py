"""The table of an attack: what was tried, and what became of it."""

from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """``tried`` inputs or events of one kind: ``well`` refused (or survived) as they should be, ``rightly`` accepted,
    ``wrong`` all others."""

    what: str
    tried: int
    well: int
    rightly: int
    wrong: int


HEAD = Row("what", "tried", "refused well", "accepted rightly", "wrong")  # type: ignore[arg-type]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with their sums."""
    total = Row("**all**", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    lines = [" | ".join(map(str, row)) for row in (HEAD, ("---", "---:", "---:", "---:", "---:"), *rows, total)]
    return "".join(f"| {line} |\n" for line in lines)
