"""A sample of answers: the same prompts, every variant's words next to each other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.benchmark import Metric, Record, Sample
from reports.run import Cell, Run

LENGTH = 600


@dataclass(frozen=True)
class Answer:
    """One variant's answer; ``text`` is None when there is none, ``note`` says what went wrong."""

    label: str
    text: str | None
    value: float | None
    note: str | None


@dataclass(frozen=True)
class Prompt:
    """A prompt under a ``heading``, the answers to it in the order of the suite, and a reference or None."""

    heading: str
    text: str
    metric: Metric
    answers: tuple[Answer, ...]
    reference: str | None


def sample_answers(run: Run) -> list[Prompt]:
    """What each benchmark's first metric with a `Sample` asks for, at the largest budget, first done seed.

    Not chosen by result: items come in the order in which the first variant that has them lists them.
    """
    cells = {variant: _first_cell(run, variant) for variant in run.plan.labels}
    prompts = []
    for benchmark in run.plan.benchmarks:
        found = [(metric, metric.sample) for metric in benchmark.metrics if metric.sample]
        for metric, sample in found[:1]:
            try:
                chosen = _chosen(_records(cells.values(), benchmark.name, metric), sample)
                for number, record in enumerate(chosen, start=1):
                    heading = sample.heading.format_map(record.raw | {"cluster": record.cluster, "number": number})
                    text = _shorten(record.raw[sample.prompt])
                    reference = None if sample.reference is None else _shorten(record.raw[sample.reference])
                    answers = (_answer(run, variant, cell, benchmark.name, record) for variant, cell in cells.items())
                    prompts.append(Prompt(heading, text, metric, tuple(answers), reference))
            except KeyError as missing:
                raise ValueError(
                    f"benchmark {benchmark.name!r}: the sample of its metric {metric.name!r} names {missing}, which a "
                    "record does not have in its raw; let the benchmark write it there or leave it out of the sample"
                ) from None
    return prompts


def _chosen(records: Iterable[Record], sample: Sample) -> list[Record]:
    """Each item once: the first ``count``, or all of the first question of each of the first values of ``spread``."""
    items: dict[str, Record] = {}
    for record in records:
        items.setdefault(record.item, record)
    if sample.spread is None:
        return list(items.values())[: sample.count]
    clusters: dict[object, str] = {}
    for record in items.values():
        if len(clusters) < sample.count:
            clusters.setdefault(record.raw[sample.spread], record.cluster)
    return [record for record in items.values() if record.cluster in clusters.values()]


def _first_cell(run: Run, variant: str) -> Cell | None:
    cells = [cell for cell in run.cells_of(variant, run.plan.budgets[-1]) if cell.done]
    return cells[0] if cells else None


def _records(cells: Iterable[Cell | None], benchmark: str, metric: Metric) -> Iterator[Record]:
    for cell in cells:
        if cell:
            yield from (record for record in cell.records.get(benchmark, ()) if record.metric == metric.name)


def _answer(run: Run, variant: str, cell: Cell | None, benchmark: str, wanted: Record) -> Answer:
    if cell is None:
        return Answer(run.plan.labels[variant], None, None, "no cell is done")
    found = (r for r in cell.records.get(benchmark, ()) if (r.metric, r.item) == (wanted.metric, wanted.item))
    record = next(found, None)
    if record is None:
        return Answer(run.plan.labels[variant], None, None, "not measured")
    text = answer_text(cell, benchmark, record)
    return Answer(run.plan.labels[variant], None if text is None else _shorten(text), record.value, record.error)


def answer_text(cell: Cell, benchmark: str, record: Record) -> str | None:
    """The answer that ``record`` is about, from the store where the record names its key; None where there is none."""
    key = record.raw.get("answer_key")
    return record.raw.get("answer") if key is None else cell.folder.answers(benchmark).text(key)


def _shorten(text: str) -> str:
    """``text``, or its beginning and how much was left out."""
    return text if len(text) <= LENGTH else f"{text[:LENGTH]} […{len(text) - LENGTH} more characters]"
