"""Everything that can be wrong with a suite, found before any work is done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoTokenizer

from harness.base_model import base_shape
from harness.chat import ChatFormat
from harness.experiment.source import Key
from harness.experiment.suite import Suite
from harness.method import BaseShape
from harness.preferences import Triple, contaminated, load_triples
from harness.refs import ModelRef

T = TypeVar("T")


@dataclass(frozen=True)
class Checked:
    """What checking had to read: the triples, and each benchmark's number of prompts."""

    triples: tuple[Triple, ...]
    prompts: dict[str, int]


def check_suite(suite: Suite) -> Checked:
    """Check files, sizes and budgets; raises one ValueError listing every problem and its place in the suite.

    Evaluation prompts that occur among the training prompts are refused: their scores would say nothing.
    """
    file, problems = suite.file, _Problems(suite)
    problems.of(("execution", "device"), lambda: _check_device(file.execution.device))
    shape = problems.of(("base",), lambda: check_base(file.base))
    for name, ref in file.saes.items():
        if ref.path is not None and not (Path(ref.path) / "cfg.json").is_file():
            text = f"SAE folder {ref.path!r} has no cfg.json; give a folder in SAELens format"
            problems.add(("saes", name), text)
    if shape is not None and not problems.texts:
        for key, method in suite.methods:
            problems.of(key, lambda method=method: method.check(shape))
    if suite.judge is not None:
        problems.of(("judge",), suite.judge.check)
    prompts: dict[str, list[str]] = {}
    for index, (name, benchmark) in enumerate(suite.benchmarks.items()):
        before = len(problems.texts)
        problems.of(("benchmarks", index), benchmark.check)
        if benchmark.needs_judge and suite.judge is None:
            problems.add(("benchmarks", index), f"benchmark {name!r} needs a judge; add `judge:` to the suite")
        if len(problems.texts) == before:
            prompts[name] = benchmark.prompts()
    triples = problems.of(("triples", "path"), lambda: load_triples(file.triples.path))
    if triples is not None:
        for index, budget in enumerate(file.budgets):
            if budget > len(triples):
                text = f"budget {budget} is larger than the data: {file.triples.path} has {len(triples)} triples"
                problems.add(("budgets", index), text)
        for name, texts in prompts.items():
            problems.of(("triples", "path"), lambda name=name, texts=texts: _check_clean(triples, name, texts))
    if problems.texts:
        raise ValueError("\n".join(dict.fromkeys(problems.texts)))
    assert triples is not None
    return Checked(tuple(triples), {name: len(texts) for name, texts in prompts.items()})


class _Problems:
    """Collects complaints, so that a user mends a suite in one round."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.texts: list[str] = []

    def add(self, key: Key, text: str) -> None:
        self.texts.append(str(self.suite.source.error(key, text)))

    def of(self, key: Key, check: Callable[[], T]) -> T | None:
        try:
            return check()
        except ValueError as problem:
            self.add(key, str(problem))
            return None


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as problem:
        raise ValueError(f"{device!r} is not a torch device: {str(problem).splitlines()[0]}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here; use device: cpu, or install a torch build with CUDA")


def check_base(ref: ModelRef) -> BaseShape:
    """The shape of the base model, without loading weights; ValueError when it cannot be read or has none."""
    try:
        if ref.path is not None and not [
            *Path(ref.path).glob("*.safetensors"),
            *Path(ref.path).glob("*.bin"),
        ]:
            _ = ref.source  # a folder without config.json has the more helpful message
            raise ValueError(f"base model folder {ref.path!r} has no weights (*.safetensors)")
        shape = base_shape(ref)
        ChatFormat.of(AutoTokenizer.from_pretrained(ref.source, revision=ref.revision), ref.chat)
    except OSError as problem:
        # transformers reports unknown ids, a missing network and missing files alike as OSError
        raise ValueError(f"cannot read base model {ref.path or ref.id!r}: {problem}") from None
    return shape


def _check_clean(triples: list[Triple], benchmark: str, prompts: list[str]) -> None:
    shared = contaminated(triples, prompts)
    if shared:
        raise ValueError(
            f"{len(shared)} evaluation prompts of {benchmark} also occur among the training prompts, first: "
            f"{shared[0]!r}; remove those triples (or those questions)"
        )
