"""What a benchmark is: a class that turns a model into records, one per judged item."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from harness.files import Document
from harness.plugins import Registry

if TYPE_CHECKING:
    from harness.data.triples import Conversation
    from harness.judging import Judge
    from harness.judging.judge import Verb
    from harness.responder import Responder


class Sample(Document):
    """How a report shows a few of a metric's answers, every variant's beside each other.

    ``heading`` is a format string over the keys of a record's ``raw``, its ``cluster`` and its ``number`` (1, 2, ... in
    the order shown). With ``spread``, a key of ``raw``, the first cluster of each of its first ``count`` values is
    shown with all its records; without it the first ``count`` records. ``prompt`` and ``reference`` are the keys of
    ``raw`` that hold what the model was asked and what it was compared with.
    """

    heading: str
    count: int
    spread: str | None = None
    prompt: str = "prompt"
    reference: str | None = None


class Metric(Document):
    """A column of the comparison, declared by the benchmark that measures it.

    ``name`` is the column in comparison.csv, ``title`` what a reader sees. Values are in ``unit``, shown with
    ``digits`` decimals, and below 0 only where ``signed``. ``made_of`` says what a value rests on: a judge's
    "ratings"; a judge's "verdicts" on each item (win, tie, loss; yes, no); "predictions" of a model of such verdicts;
    "choices" between given answers by log-likelihood; other "loglikelihoods" of given texts; or "measurements" of any
    other kind. ``note`` is a sentence that every report says of how its numbers are made.

        Metric(name="toxicity", title="Toxicity", unit="% of answers", higher_is_better=False)
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool = True
    digits: int = 1
    signed: bool = False
    made_of: Literal["ratings", "verdicts", "predictions", "choices", "loglikelihoods", "measurements"] = "measurements"
    sample: Sample | None = None
    note: str | None = None

    @property
    def scale(self) -> tuple[float, float]:
        """The least and the largest value, as far as unit and kind tell: where an interval of a mean ends."""
        if self.signed:
            return -inf, inf
        return (1.0, 10.0) if self.made_of == "ratings" else (0.0, 100.0 if "%" in self.unit else inf)

    def better(self, a: float, b: float) -> bool:
        """Whether the value ``a`` is better than ``b``."""
        return a > b if self.higher_is_better else a < b

    @property
    def least_span(self) -> float:
        """The least range of values worth filling a plot with, in ``unit``."""
        return 50 * 10.0**-self.digits


@dataclass(frozen=True)
class Item:
    """What a benchmark will ask of a model, as far as it is known beforehand: enough to see whether it fits.

    ``name`` is what `PromptBenchmark.without` leaves out, ``place`` where a user finds it. ``conversation`` is followed
    by one of the given ``answers``, or by ``generated`` new tokens at most; in each of ``rounds`` where it has several
    turns that the model answers (it then holds the later ones, with nothing in the model's place).
    """

    name: str
    place: str
    conversation: "Conversation"
    answers: tuple[str, ...] = ()
    generated: int = 0
    rounds: int = 1


@dataclass(frozen=True)
class Request:
    """What a benchmark without `Item` asks in plain text: ``continuations`` scored behind one ``context``, or at most
    ``generated`` new tokens. It stands for ``count`` alike ones."""

    context: str
    continuations: tuple[str, ...] = ()
    generated: int = 0
    count: float = 1.0


@dataclass(frozen=True)
class Record:
    """One measured item.

    ``item`` identifies the measurement inside its benchmark (unique), ``cluster`` the independent unit it belongs
    to (the two turns of an MT-Bench question share one), ``metric`` the column it feeds. ``value`` is in the
    metric's reporting unit (percent for shares and accuracies, 1-10 for ratings) and is None exactly when
    ``error`` says why there is no value. ``raw`` keeps what a reader needs to check it: prompt, answer, verdict.
    """

    item: str
    cluster: str
    metric: str
    value: float | None
    error: str | None = None
    raw: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.value is None) != (self.error is not None):
            raise ValueError(f"record {self.item!r}: value must be None exactly when error is set")


def prompt_fields(conversation: "Conversation") -> dict[str, Any]:
    """What a record's ``raw`` says of what the model was asked: ``prompt``, the last turn's text, and where there are
    turns before it ``earlier``, these messages. Without them nobody could look into the answer again."""
    *earlier, last = conversation
    return {"prompt": last["content"], **({"earlier": [dict(message) for message in earlier]} if earlier else {})}


def filled(name: str, by: str | None = None) -> ConfigDict:
    """The config of a class whose validator finds the required field ``name`` where a suite leaves it out, or where it
    gives the field ``by`` instead: editors and `describe` then ask for neither, or for one of them."""

    def loosen(schema: dict[str, Any]) -> None:
        schema["required"] = [one for one in schema["required"] if one != name]
        if by is not None:
            schema["anyOf"] = [{"required": [name]}, {"required": [by]}]

    return ConfigDict(json_schema_extra=loosen)


class BenchmarkConfig(BaseModel):
    """One evaluation, whose settings come from a suite file: unknown keys are refused.

    A suite may have the same one several times, each under a name of its own; it then writes records of its `metrics`
    as ever, and they are kept as `columns` of that name.

    ``files`` is the folder of a cell that the evaluator's own files go to (None: the benchmark's name),
    ``needs_judge`` is False for one that can run in a suite without a judge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: ClassVar[str]
    files: ClassVar[str | None] = None
    needs_judge: ClassVar[bool] = True

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric that its records may carry."""
        raise NotImplementedError

    @property
    def asks(self) -> "frozenset[Verb]":
        """What is asked of the judge; nothing by default, so that no judge is refused for what it cannot say."""
        return frozenset()

    @property
    def cap_key(self) -> str | None:
        """The setting that caps what it spends on a server of its own; None: it has none, so that it spends nothing."""
        return None

    def at(self, folder: Path) -> Self:
        """This benchmark with its calls to such a server in the ledger in ``folder``, which all processes share."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Plain sentences that every report must say about its numbers; asked for after `check`."""
        return ()

    def column(self, metric: str, name: str) -> str:
        """What its ``metric`` is called where a suite calls it ``name``: ``mt_bench_win`` becomes ``hard_win``."""
        if name == self.name:
            return metric
        return name if metric == self.name else f"{name}_{metric.removeprefix(f'{self.name}_')}"

    def columns(self, name: str) -> tuple[Metric, ...]:
        """Its `metrics` where a suite calls it ``name``."""
        if name == self.name:
            return self.metrics
        return tuple(
            metric.model_copy(update={"name": self.column(metric.name, name), "title": f"{metric.title} ({name})"})
            for metric in self.metrics
        )

    def folder(self, name: str) -> str:
        """Where in a cell its `files` go where a suite calls it ``name``."""
        return (self.files if name == self.name else None) or name

    def check(self) -> None:
        """Raise ValueError, before any work, when the inputs (task files, question files) are missing or bad."""
        raise NotImplementedError

    def prompts(self) -> list[str]:
        """The user prompts it evaluates on; training data that contains one of them is contaminated."""
        return []

    def requests(self) -> "Sequence[Request] | None":
        """A sample of what it will ask, for forecasts; None: it does not say. Asked for after `check`."""
        return None

    def run(
        self, model: "Responder", *, judge: "Judge | None", seed: int, folder: Path | None = None
    ) -> Iterator[Record]:
        """Yield one record per item; ``folder`` (when given) receives the files in the evaluator's own formats.

        A record's ``raw`` names an answer by `Completion.record_fields`: its text is in the store.
        """
        raise NotImplementedError

    def judge_again(
        self, model: "Responder", *, judge: "Judge", seed: int, folder: Path | None = None
    ) -> Iterator[Record]:
        """As `run`, for a second judge of answers that were judged: no file in ``folder`` repeats an answer.

        Metrics that no judge makes may be left out, each as a whole.
        `run` by default, which is right where that writes no answers to ``folder``.
        """
        return self.run(model, judge=judge, seed=seed, folder=folder)


class PromptBenchmark(BenchmarkConfig):
    """A benchmark that says beforehand what it will ask, so that a suite is refused where that does not fit.

    ``too_long`` says what becomes of items that do not fit the model's context. It changes no result: with ``refuse``
    there are none. A subclass leaves what is in ``_left_out`` out of all that it asks.
    """

    too_long: Literal["refuse", "skip"] = Field(
        "refuse", description="prompts that do not fit the context: refuse the suite, or leave them out and say so"
    )
    _left_out: frozenset[str] = PrivateAttr(frozenset())

    def items(self) -> "Sequence[Item]":
        """What it will ask, without what is left out; asked for after `check`."""
        raise NotImplementedError

    @property
    def verdicts(self) -> int:
        """How often a judge is asked in one cell: once for each generated answer, unless a benchmark knows better."""
        return sum(item.rounds for item in self.items() if item.generated) if self.needs_judge else 0

    def without(self, names: frozenset[str]) -> Self:
        """The same benchmark without these of its `items`."""
        copy = self.model_copy()
        copy._left_out = names
        return copy


Benchmark = BenchmarkConfig  # the published name
BENCHMARKS: Registry[BenchmarkConfig] = Registry("benchmark")
register_benchmark = BENCHMARKS.register
