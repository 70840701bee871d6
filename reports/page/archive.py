"""The answers of a run in a form that a page can hold: packed by cell, as many as fit a limit."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from harness.benchmark import Record
from harness.responder import Completion
from harness.run_folder.answers import AnswerStore
from harness.run_folder.plan import budget_order
from reports.page.libraries import pack
from reports.run import Cell, Run

LIMIT = 24 * 2**20
"""Most characters of packed answers in one page."""
_ANSWER = ("answer_key", "answer_hash", "answer")
_OWN = (*_ANSWER, "judge")
"""Keys of ``raw`` that belong to one record, even where all records say the same."""

Shared = dict[tuple[str, str], dict[str, tuple[str, dict[str, Any]]]]
"""(benchmark, metric) -> item -> its cluster and what ``raw`` says of it in every cell alike: prompt, category, ..."""


class Chunk(NamedTuple):
    """One packed JSON document; a cell's is called by the cell's name."""

    name: str
    packed: str


class Archive(NamedTuple):
    """What the page's answer viewer reads.

    ``questions`` unpacks to {benchmark: {metric: [[item, cluster, shared raw], ...]}}. Each chunk in ``cells`` to
    {"answers": {benchmark: [[text or null, tokens, steered tokens, finished, edited parts], ...]}, "records":
    {benchmark: {metric: [[number of the question, value, error, rest of raw, number of the answer or null, second
    judge's], ...]}}}, where the second judge's is null or [value, error, rest of raw]. ``left_out`` are the cells that
    did not fit.
    """

    questions: Chunk
    cells: list[Chunk]
    left_out: list[str]

    @property
    def size(self) -> int:
        """Characters of all packed answers."""
        return sum(len(chunk.packed) for chunk in (self.questions, *self.cells))


class Packer:
    """What the viewer reads of the done cells of ``run``, document by document (see `Archive`)."""

    def __init__(self, run: Run) -> None:
        self.cells = {cell.planned.name: cell for cell in run.cells if cell.done}
        self._shared = _shared(self.cells.values())
        self._numbers = {place: {item: n for n, item in enumerate(items)} for place, items in self._shared.items()}

    def questions(self) -> dict[str, dict[str, list]]:
        """What all cells' records share."""
        found: dict[str, dict[str, list]] = {}
        for (benchmark, metric), items in self._shared.items():
            found.setdefault(benchmark, {})[metric] = [[item, *about] for item, about in items.items()]
        return found

    def cell(self, name: str) -> dict[str, Any]:
        """Answers and records of one cell."""
        return _cell(self.cells[name], self._shared, self._numbers)


def archive(run: Run, limit: int = LIMIT) -> Archive:
    """Pack the done cells of ``run``: by seeds, each from the largest budget down, as long as they fit ``limit``.

    So every variant has its answers to the same questions in before any has a second repeat of them.
    """
    packer = Packer(run)
    first = Chunk("questions", _packed(packer.questions()))
    packed: list[Chunk] = []
    size, order = len(first.packed), sorted(packer.cells.values(), key=_priority)
    for cell in order:
        chunk = Chunk(cell.planned.name, _packed(packer.cell(cell.planned.name)))
        if size + len(chunk.packed) > limit:
            break
        packed.append(chunk)
        size += len(chunk.packed)
    return Archive(first, packed, [cell.planned.name for cell in order[len(packed) :]])


def _priority(cell: Cell) -> tuple[Any, ...]:
    """Cells without triples have budget 0 and are compared at every budget, so they come with the largest."""
    rank = budget_order(cell.planned.budget)
    return cell.planned.seed, cell.planned.uses_triples, *(-part for part in rank), bool(cell.planned.sweep)


def _shared(cells: Iterable[Cell]) -> Shared:
    found: Shared = {}
    for cell in cells:
        for benchmark, records in cell.records.items():
            for record in records:
                items = found.setdefault((benchmark, record.metric), {})
                raw = {key: value for key, value in record.raw.items() if key not in _OWN}
                if record.item in items:
                    known = items[record.item][1]
                    raw = {key: value for key, value in known.items() if key in raw and raw[key] == value}
                items[record.item] = (record.cluster, raw)
    return found


def _cell(cell: Cell, shared: Shared, numbers: dict[tuple[str, str], dict[str, int]]) -> dict[str, Any]:
    answers: dict[str, list] = {}
    rows: dict[str, dict[str, list]] = {}
    for benchmark, records in cell.records.items():
        texts = _Texts(cell.folder.answers(benchmark))
        again = {(record.metric, record.item): record for record in cell.second.get(benchmark, ())}
        for record in records:
            about = shared[benchmark, record.metric][record.item][1]
            second = again.get((record.metric, record.item))
            rows.setdefault(benchmark, {}).setdefault(record.metric, []).append(
                [
                    numbers[benchmark, record.metric][record.item],
                    *_verdict(record, about),
                    texts.number(record),
                    None if second is None else list(_verdict(second, about)),
                ]
            )
        answers[benchmark] = texts.rows
    return {"answers": answers, "records": rows}


class _Texts:
    """The answers of one benchmark, each once however many records are about it."""

    def __init__(self, store: AnswerStore) -> None:
        self.store = store
        self.rows: list[list[Any]] = []
        self._numbers: dict[str, int] = {}

    def number(self, record: Record) -> int | None:
        """The row of the record's answer; None where it has none. A row's text is None where the store lacks it."""
        key = record.raw.get("answer_key")
        if key is None:
            text = record.raw.get("answer")
            return None if text is None else self._add([text, *_facts(None)[1:]])
        if key not in self._numbers:
            self._numbers[key] = self._add(_facts(self.store.get(key)))
        return self._numbers[key]

    def _add(self, row: list[Any]) -> int:
        self.rows.append(row)
        return len(self.rows) - 1


def _facts(made: Completion | None) -> list[Any]:
    """What `Archive` says of an answer; all null for one that is in no store."""
    if made is None:
        return [None] * 5
    return [made.text, len(made.token_ids), made.steered_tokens, made.finished, made.edited]


def _verdict(record: Record, about: dict[str, Any]) -> Iterator[Any]:
    """Value, error, and what else ``raw`` says that is not the same everywhere."""
    yield record.value
    yield record.error
    yield {key: value for key, value in record.raw.items() if key not in _ANSWER and key not in about}


def _packed(document: Any) -> str:
    return pack(json.dumps(document, separators=(",", ":")).encode())
