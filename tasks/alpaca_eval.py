"""AlpacaEval: answers to instructions, compared with reference outputs by a judge; the package's win rate."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.adapters.alpaca_eval import evaluate
from harness.benchmark import BenchmarkConfig, Record, register_benchmark
from harness.files import read_text, write_text
from harness.judges import Judge
from harness.preferences import conversation

if TYPE_CHECKING:
    from harness.model import AlignedModel


@register_benchmark("alpaca_eval")
class AlpacaEval(BenchmarkConfig):
    """Metric ``alpaca_eval``: 100 * (preference - 1), so its mean is the package's win rate in percent.

    The folder receives model_outputs.json, annotations.json and leaderboard.csv in AlpacaEval's formats. A
    length-controlled win rate is not available: see harness.adapters.alpaca_eval for the reason.
    """

    references: Path = Field(
        description="JSON list of {instruction, output, generator, dataset}: what to answer and what to beat"
    )
    max_new_tokens: int = Field(1024, ge=1, description="tokens per answer")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    batch_size: int = Field(64, ge=1, description="conversations generated together")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("alpaca_eval",)

    def check(self) -> None:
        _ = self._references

    def prompts(self) -> list[str]:
        return [row["instruction"] for row in self._references]

    def run(
        self, model: "AlignedModel", *, judge: "Judge | None", seed: int, folder: Path | None = None
    ) -> Iterator[Record]:
        if judge is None:
            raise ValueError("benchmark 'alpaca_eval' needs a judge; add `judge:` to the suite")
        completions = model.generate(
            [conversation(row["instruction"]) for row in self._references],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
            batch_size=self.batch_size,
        )
        generator = f"{model.method}-{model.fingerprint[:12]}"
        rows, outputs, references = [], [], []
        for index, (reference, completion) in enumerate(zip(self._references, completions, strict=True)):
            if completion.error is None:
                rows.append(index)
                outputs.append({**reference, "output": completion.text, "generator": generator})
                references.append(reference)
            else:
                raw = {"instruction": reference["instruction"], "reference": reference["output"]}
                yield _record(index, None, f"no answer: {completion.error}", raw)
        if not rows:
            return
        if folder is not None:
            write_text(folder / "model_outputs.json", json.dumps(outputs, indent=2) + "\n")
        for index, annotation in zip(
            rows, evaluate(outputs, references, judge, folder=folder).annotations, strict=True
        ):
            value = None if annotation.preference is None else 100 * (annotation.preference - 1)
            raw = {
                "instruction": annotation.instruction,
                "reference": annotation.reference,
                "answer": annotation.output,
                "verdicts": list(annotation.raw),
            }
            yield _record(index, value, annotation.error, raw)

    @cached_property
    def _references(self) -> list[dict[str, str]]:
        path = self.references
        try:
            rows = json.loads(read_text(path, "AlpacaEval reference"))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path}:{problem.lineno}: not valid JSON ({problem.msg})") from None
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{path}: expected a non-empty JSON list of objects with instruction and output")
        return [_reference(row, f"{path}: entry {number}") for number, row in enumerate(rows, 1)]


def _reference(row: Any, place: str) -> dict[str, str]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object with instruction and output, got {type(row).__name__}")
    for key in ("instruction", "output"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{place}: {key!r} must be a string, got {row.get(key)!r}")
    if not row["instruction"].strip():
        raise ValueError(f"{place}: 'instruction' is empty")
    return {
        "instruction": row["instruction"],
        "output": row["output"],
        "generator": str(row.get("generator", "reference")),
        "dataset": str(row.get("dataset", "")),
    }


def _record(index: int, value: float | None, error: str | None, raw: dict[str, Any]) -> Record:
    return Record(str(index), str(index), "alpaca_eval", value, error, raw)
