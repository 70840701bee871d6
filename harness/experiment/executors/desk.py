"""Where the tasks of a cluster report; it runs beside the driver, as a Ray actor of one process."""

from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """A worker process: ``host`` is the name of its machine with the beginning of Ray's ``node`` id."""

    node: str
    host: str
    pid: int


@dataclass(frozen=True)
class Sign:
    """What the worker at ``place`` that has a cell said last, in the cell's ``attempt``-th attempt (from 0 on);
    ``stage`` is "" before its first stage."""

    attempt: int
    place: Place
    stage: str = ""
    records: int = 0


class Desk:
    """The newest sign of each cell that gave one since it was asked. Nothing is lost with it: each sign says all."""

    def __init__(self) -> None:
        self._news: dict[str, Sign] = {}

    def tell(self, cell: str, sign: Sign) -> None:
        """A sign of life of the worker that has ``cell``."""
        self._news[cell] = sign

    def news(self) -> dict[str, Sign]:
        """What came since the last call."""
        news, self._news = self._news, {}
        return news
