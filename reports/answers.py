"""A sample of answers: the same prompts, every variant's words next to each other."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from harness.benchmark import Metric, Record, Sample
from reports.run import Run

LENGTH = 600


class Answer(NamedTuple):
    """One variant's answer; ``text`` is None when there is none, ``note`` says what went wrong."""

    label: str
    text: str | None
    value: float | None
    note: str | None


class Prompt(NamedTuple):
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
    prompts = []
    for benchmark in run.plan.benchmarks:
        metric = next((metric for metric in benchmark.metrics if metric.sample), None)
        if metric is not None and metric.sample is not None:
            columns = [_Column(run, variant, benchmark.name, metric.name) for variant in run.plan.labels]
            try:
                prompts += _prompts(columns, metric, metric.sample)
            except KeyError as missing:
                raise ValueError(
                    f"benchmark {benchmark.name!r}: the sample of its metric {metric.name!r} names {missing}, which a "
                    "record does not have in its raw; let the benchmark write it there or leave it out of the sample"
                ) from None
    return prompts


class _Column:
    """One variant's records of one metric in its first done cell at the largest budget, and the answers they name."""

    def __init__(self, run: Run, variant: str, benchmark: str, metric: str) -> None:
        cell = next(iter(run.cells_of(variant, run.plan.budgets[-1])), None)
        records = cell.records.get(benchmark, ()) if cell else ()
        self.label = run.plan.labels[variant]
        self.done = cell is not None
        self.records = {record.item: record for record in records if record.metric == metric}
        self.store = cell and cell.folder.answers(benchmark)

    def answer(self, item: str) -> Answer:
        record = self.records.get(item)
        if record is None:
            return Answer(self.label, None, None, "not measured" if self.done else "no cell is done")
        text = self._text(record)
        return Answer(self.label, None if text is None else _shorten(text), record.value, record.error)

    def _text(self, record: Record) -> str | None:
        """From the store of answers where the record names a key, else from the record; None where there is none."""
        key = record.raw.get("answer_key")
        return record.raw.get("answer") if key is None or self.store is None else self.store[key].text


def _prompts(columns: Sequence[_Column], metric: Metric, sample: Sample) -> Iterator[Prompt]:
    records: dict[str, Record] = {}
    for column in columns:
        records |= {item: record for item, record in column.records.items() if item not in records}
    for number, record in enumerate(_chosen(records.values(), sample), start=1):
        yield Prompt(
            heading=sample.heading.format_map(record.raw | {"cluster": record.cluster, "number": number}),
            text=_shorten(record.raw[sample.prompt]),
            metric=metric,
            answers=tuple(column.answer(record.item) for column in columns),
            reference=None if sample.reference is None else _shorten(record.raw[sample.reference]),
        )


def _chosen(records: Iterable[Record], sample: Sample) -> list[Record]:
    """The first ``count``, or all of the first question of each of the first values of ``spread``."""
    records = list(records)
    if sample.spread is None:
        return records[: sample.count]
    clusters: dict[object, str] = {}
    for record in records:
        if len(clusters) < sample.count:
            clusters.setdefault(record.raw[sample.spread], record.cluster)
    return [record for record in records if record.cluster in clusters.values()]


def _shorten(text: str) -> str:
    """``text``, or its beginning and how much was left out."""
    return text if len(text) <= LENGTH else f"{text[:LENGTH]} […{len(text) - LENGTH} more characters]"
