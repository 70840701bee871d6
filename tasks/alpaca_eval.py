"""AlpacaEval: answers to instructions, compared with references by a judge or one of the package's annotators."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, computed_field, field_validator, model_validator

from harness.benchmark import Item, Metric, PromptBenchmark, Record, Sample, filled, register_benchmark
from harness.data import data_file, data_folder
from harness.data.refs import InputPath
from harness.data.triples import conversation
from harness.evaluators.alpaca_eval.annotator import REMOTE, PackageAnnotator
from harness.evaluators.alpaca_eval.files import load_outputs
from harness.evaluators.alpaca_eval.length_control import Form, LengthControl, UnavailableError
from harness.evaluators.alpaca_eval.spending import Spending
from harness.files import write_text
from harness.judging import Judge, Verb
from harness.judging.chat_endpoint import check_address
from harness.judging.ledger import Ledger
from harness.plugins import need
from harness.responder import Responder
from tasks.questions import asked_of, evenly, titled

REFERENCES = {
    "v1": "alpaca_eval/model_outputs/text_davinci_003.json",
    "v2": "alpaca_eval/model_outputs/gpt4_1106_preview.json",
}
"""AlpacaEval's own references in the data folder."""
_WIN_RATE = Metric(
    name="alpaca_eval",
    title="AlpacaEval win rate",
    unit="%",
    made_of="verdicts",
    sample=Sample(heading="AlpacaEval instruction {number}", count=3, prompt="instruction", reference="reference"),
    note="AlpacaEval's win rate is 100 (preference - 1), against the reference answers.",
)


def _length_controlled(name: str, form: str) -> Metric:
    return Metric(name=name, title=f"AlpacaEval length-controlled win rate{form}", unit="%", made_of="predictions")


_LENGTH_CONTROLLED: dict[Form, Metric] = {
    "v1": _length_controlled("alpaca_eval_lc", ""),
    "rebuilt": _length_controlled("alpaca_eval_lc_rebuilt", ", regularisation rebuilt"),
    "noreg": _length_controlled("alpaca_eval_lc_noreg", ", not regularised"),
}
"""A name for each form: their figures differ."""


@register_benchmark("alpaca_eval")
class AlpacaEval(PromptBenchmark):
    """Metric ``alpaca_eval``: 100 * (preference - 1), so its mean is the package's win rate in percent.

    Metric ``alpaca_eval_lc``, where AlpacaEval's instructions are answered and the inputs are in the data folder: the
    preference predicted at equal lengths, so its mean is the length-controlled win rate. Its interval, like the
    package's standard error, takes the fitted regression as given. Other forms of the regression have metrics of their
    own, ``alpaca_eval_lc_rebuilt`` and ``_noreg``. Under ``auto`` a regression that cannot be fitted (too few verdicts)
    gives no records, and the verdicts' say why.

    The folder receives model_outputs.json, annotations.json and leaderboard.csv (with average length and standard
    errors) in AlpacaEval's formats, and what an annotator of the package answered.
    """

    model_config = filled("references", by="reference")
    operational: ClassVar[frozenset[str]] = frozenset({"annotator_price", "annotator_max_cost"})
    _ledger: Ledger | None = PrivateAttr(None)

    references: InputPath = Field(
        description="JSON list of {instruction, output, generator, dataset}: what to answer and what to beat"
    )
    reference: Literal["v1", "v2"] | None = Field(
        None, description="instead of `references`: AlpacaEval's own, text_davinci_003 or gpt4_1106_preview"
    )
    limit: int | None = Field(
        None, ge=1, description="ask only so many of the instructions, evenly spaced in the file; all unless given"
    )
    annotator: str | None = Field(None, description="a configuration of the package, by name, instead of the judge")
    annotator_config: InputPath | None = Field(None, description="a configuration of your own in the package's format")
    annotator_url: str | None = Field(None, description="the server an OpenAI-compatible configuration is to ask")
    annotator_model: str | None = Field(None, description="the model's name at that server")
    annotator_price: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="of a million of its tokens; by default the package's own figure"
    )
    annotator_max_cost: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="most that the run may spend, its judges included"
    )
    length_control: Literal["auto", "v1", "rebuilt", "noreg", "off"] = Field(
        "auto",
        description="form of the regression; auto: v1 (the published one), else rebuilt, where the inputs are there",
    )
    max_new_tokens: int = Field(1024, ge=1, description="tokens per answer")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    batch_size: int = Field(64, ge=1, description="conversations generated together")

    @model_validator(mode="before")
    @classmethod
    def _find_references(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("reference") not in REFERENCES:
            return values
        if values.get("references") is not None:
            raise ValueError("give either `reference` (v1, v2) or `references` (a file), not both")
        return {**values, "references": data_folder().absolute() / REFERENCES[values["reference"]]}

    @model_validator(mode="after")
    def _one_annotator(self) -> "AlpacaEval":
        if self.annotator is not None and self.annotator_config is not None:
            raise ValueError("give either `annotator` (a name) or `annotator_config` (a file), not both")
        redirected = self.annotator_url is not None or self.annotator_model is not None
        if redirected and self.annotator is None and self.annotator_config is None:
            raise ValueError("annotator_url and annotator_model need `annotator` or `annotator_config`")
        return self

    @field_validator("annotator_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is not None:
            check_address(url, "the environment variable OPENAI_API_KEY, or the package's file of clients")
        return url

    @computed_field
    @property
    def length_control_inputs(self) -> str:
        """Which regression on which inputs: part of a run's identity, since the data folder is not."""
        found = self._regression
        if found is None:
            return "none"
        inputs = [sorted(found.difficulty.items()), None if found.gamed is None else found.gamed.to_csv()]
        return f"{found.form} {hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]}"

    @property
    def needs_judge(self) -> bool:
        return self.annotator is None and self.annotator_config is None

    @property
    def asks(self) -> frozenset[Verb]:
        return frozenset({"compare"}) if self.needs_judge else frozenset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        found = [_WIN_RATE]
        if self._regression is not None:
            found.append(_LENGTH_CONTROLLED[self._regression.form])
        return tuple(titled(metric, "AlpacaEval", self._whose, self.limit) for metric in found)

    @property
    def notes(self) -> tuple[str, ...]:
        found = []
        if self._annotator is not None:
            asked = "" if self.annotator_url is None else f" by {self.annotator_model or 'its model'} at another server"
            found.append(
                f"AlpacaEval's verdicts are those of alpaca_eval's annotator {self._annotator.name}{asked}, which "
                "sees each pair once, in an order drawn for each instruction."
            )
        if self._regression is not None:
            found.append(self._regression.statement)
        elif self._length_control is not None:
            found.append(f"There is no length-controlled AlpacaEval win rate: {self._length_control}.")
        return tuple(found)

    def check(self) -> None:
        need("alpaca_eval", f"benchmark {self.name!r}")
        if self.reference is not None:
            data_file(REFERENCES[self.reference], "alpaca_eval")
        _ = self._asked
        if self._annotator is not None:
            self._annotator.check()
            self._check_price(self._annotator)
        if self._form is not None and self._regression is None:
            raise ValueError(f"length_control: {self.length_control} is not available: {self._length_control}")

    def prompts(self) -> list[str]:
        return [row["instruction"] for _, row in self._asked]

    def items(self) -> list[Item]:
        return [
            Item(
                str(index), f"instruction {index + 1}", conversation(row["instruction"]), generated=self.max_new_tokens
            )
            for index, row in self._asked
        ]

    def run(self, model: Responder, *, judge: Judge | None, seed: int, folder: Path | None = None) -> Iterator[Record]:
        from harness.evaluators.alpaca_eval.evaluate import evaluate

        by = self._annotator or judge
        if by is None:
            raise ValueError("benchmark 'alpaca_eval' needs a judge; add `judge:` to the suite, or name an `annotator`")
        completions = model.generate(
            [conversation(instruction) for instruction in self.prompts()],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
            batch_size=self.batch_size,
        )
        generator = f"{model.method}-{model.fingerprint[:12]}"
        rows, outputs, references, controlled = [], [], [], []
        control = self._regression and _LENGTH_CONTROLLED[self._regression.form]
        for (index, reference), completion in zip(self._asked, completions, strict=True):
            if completion.error is None:
                rows.append((index, completion))
                outputs.append({**reference, "output": completion.text, "generator": generator})
                references.append(reference)
            else:
                raw = {"instruction": reference["instruction"], "reference": reference["output"]}
                failed = None, f"no answer: {completion.error}", raw
                yield _record(index, _WIN_RATE, *failed)
                controlled.append((index, *failed))
        unavailable = None
        if rows:
            if folder is not None:
                write_text(folder / "model_outputs.json", json.dumps(outputs, indent=2) + "\n")
            how = {"length_control": self._regression, "spending": self._spending}
            found = evaluate(outputs, references, by, folder=folder, **how)
            unavailable = found.no_length_control
            why = {} if unavailable is None else {"no_length_control": unavailable}
            for (index, completion), annotation in zip(rows, found.annotations, strict=True):
                raw = {"instruction": annotation.instruction, "reference": annotation.reference}
                raw |= {**completion.record_fields, "verdicts": list(annotation.raw), **why}
                yield _record(index, _WIN_RATE, annotation.preference, annotation.error, raw)
                raw = {"characters": len(annotation.output), "reference_characters": len(annotation.reference)}
                error = annotation.error or unavailable
                controlled.append((index, annotation.length_controlled, error, raw))
        # Under `auto` nobody asked for a figure that these verdicts do not give.
        if control is not None and (unavailable is None or self._form is not None):
            for index, *measured in controlled:
                yield _record(index, control, *measured)

    @property
    def cap_key(self) -> str | None:
        return None if self._annotator is None or self._annotator.client not in REMOTE else "annotator_max_cost"

    def at(self, folder: Path) -> Self:
        copy = self.model_copy()
        copy._ledger = Ledger(folder)
        return copy

    def _check_price(self, annotator: PackageAnnotator) -> None:
        if self.annotator_max_cost is None:
            return
        if annotator.client != "openai_completions":
            raise ValueError(
                f"annotator_max_cost: annotator {annotator.name!r} asks by {annotator.client}, which does not say what "
                "it used, so nothing can keep it below a cap; leave the cap out, or take one that asks OpenAI's API"
            )
        if self._price is None:
            raise ValueError(
                f"annotator_max_cost needs annotator_price (of a million tokens): alpaca_eval has no price of "
                f"{' and '.join(annotator.models)}; 0 for a free server"
            )

    @cached_property
    def _price(self) -> float | None:
        if self.annotator_price is not None or self._annotator is None:
            return self.annotator_price
        return self._annotator.price() if self._annotator.client == "openai_completions" else None

    @property
    def _spending(self) -> Spending | None:
        """Where an annotator's calls are entered; None where they are not the run's, or there are none."""
        if self._ledger is None or self._annotator is None:
            return None
        address = self.annotator_url or self._annotator.client
        return Spending(self._ledger, self._annotator.name, address, self._price, self.annotator_max_cost)

    def judge_again(self, model: Responder, *, judge: Judge, seed: int, folder: Path | None = None) -> Iterator[Record]:
        """Writes no files: each of the package's own repeats every answer. The verdicts are in the records."""
        return self.run(model, judge=judge, seed=seed)

    @cached_property
    def _references(self) -> list[dict[str, str]]:
        return load_outputs(self.references, "AlpacaEval reference")

    @property
    def _asked(self) -> list[tuple[int, dict[str, str]]]:
        """Place and reference of the instructions that are asked."""
        asked = evenly(list(enumerate(self._references)), self.limit, self.references)
        return [(i, row) for i, row in asked if str(i) not in self._left_out]

    @cached_property
    def _whose(self) -> str | None:
        """Whose instructions these are, where not AlpacaEval's."""
        return asked_of("AlpacaEval", (row["instruction"] for row in self._references))

    @cached_property
    def _annotator(self) -> PackageAnnotator | None:
        config = self.annotator if self.annotator is not None else self.annotator_config
        if config is None:
            return None
        return PackageAnnotator.load(config, url=self.annotator_url, model=self.annotator_model)

    @cached_property
    def _length_control(self) -> LengthControl | str | None:
        """The regression's inputs, or why it is not available; None where it is not wanted."""
        if self.length_control == "off":
            return None
        try:
            found = LengthControl.load(data_folder(), self._form)
        except UnavailableError as problem:
            if self._whose is None or self.reference is not None or self._form is not None:
                return str(problem)  # with the advice to fetch them
            return f"the difficulties that it needs are those of AlpacaEval's own instructions; these are {self._whose}"
        try:
            found.covers([row["instruction"] for row in self._references])
        except UnavailableError as problem:
            return str(problem)
        return found

    @property
    def _form(self) -> Form | None:
        """The form that is asked for by name."""
        return None if self.length_control in ("auto", "off") else self.length_control

    @property
    def _regression(self) -> LengthControl | None:
        return self._length_control if isinstance(self._length_control, LengthControl) else None


def _record(index: int, metric: Metric, preference: float | None, error: str | None, raw: dict[str, Any]) -> Record:
    value = None if preference is None else 100 * (preference - 1)
    return Record(str(index), str(index), metric.name, value, error, raw)
