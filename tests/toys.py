"""A plugin for tests of the harness: methods, a benchmark and a judge as small as they can be, on real tiny models."""

import copy
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import ClassVar, Literal

import torch
import yaml

from harness.benchmark import BenchmarkConfig, Metric, Record, register_benchmark
from harness.data.refs import InputPath, ModelRef, SAERef
from harness.data.triples import conversation
from harness.judging import JudgeConfig, register_judge
from harness.method import BaseShape, MethodConfig, register_method
from harness.run_folder import CellState, RunFolder


@register_method("toy_base")
class ToyBase(MethodConfig):
    uses_triples = False

    def fit(self, base, triples, *, meter, seed):
        assert not triples
        return base.derive(method="toy_base")


@register_method("toy_noise")
class ToyNoise(MethodConfig):
    """Adds noise that depends on the seed and on which triples came in which order.

    ``stop_until``: a file; while it does not exist the fit makes it and stops its process. "never": it sleeps.
    """

    diagnostics: ClassVar = {"wobble": "how much the toy wobbles"}

    scale: float = 0.1
    sae: SAERef | None = None
    layer: int = 0
    shape: Literal["flat", "round"] = "flat"
    stop_until: str = ""

    def check(self, base: BaseShape) -> None:
        if self.layer >= base.n_layers:
            raise ValueError(f"layer {self.layer} is outside {base.name}, which has layers 0 to {base.n_layers - 1}")

    def fit(self, base, triples, *, meter, seed):
        if self.scale < 0:
            raise RuntimeError("the toy method was asked to fail")
        if self.scale > 100:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.stop_until == "never":
            time.sleep(10**6)
        if self.stop_until and not Path(self.stop_until).exists():
            Path(self.stop_until).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        text = "\n".join(t.key for t in triples)
        generator = torch.Generator().manual_seed(seed ^ int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))
        model = copy.deepcopy(base.model)
        with meter.stage("noise"), torch.no_grad():
            for parameter in model.parameters():
                parameter += self.scale * torch.randn(parameter.shape, generator=generator)
        return base.derive(method="toy_noise", model=model, delta="weights", params=self.model_dump(mode="json"))


@register_benchmark("toy_bench")
class ToyBench(BenchmarkConfig):
    """Value: the share of even token ids in a sampled answer, in percent.

    ``pause``: seconds before each record. ``fail_while``: a file; while it exists the second record fails.
    """

    needs_judge = False

    questions: InputPath
    pause: float = 0.0
    fail_while: str = ""
    batch_size: int = 64
    temperature: float = 1.0

    @property
    def metrics(self):
        return (Metric(name="evenness", title="Evenness", unit="%"),)

    def check(self) -> None:
        if not self.questions.is_file():
            raise ValueError(f"questions file {str(self.questions)!r} does not exist")

    def prompts(self) -> list[str]:
        return [json.loads(line) for line in self.questions.read_text().splitlines()]

    def run(self, model, *, judge, seed, folder=None):
        prompts = [conversation(p) for p in self.prompts()]
        how = {"max_new_tokens": 8, "temperature": self.temperature, "seed": seed, "batch_size": self.batch_size}
        completions = model.generate(prompts, **how)
        failing = self.fail_while != "" and Path(self.fail_while).exists()
        for index, completion in enumerate(completions):
            time.sleep(self.pause)
            value = 100 * sum(i % 2 == 0 for i in completion.token_ids) / len(completion.token_ids)
            if failing and index == 1:
                yield Record(str(index), str(index), "evenness", None, "the judge was away")
            else:
                yield Record(str(index), str(index), "evenness", value, raw=completion.record_fields)


@register_benchmark("toy_crash")
class ToyCrash(BenchmarkConfig):
    """Gives one record and breaks."""

    needs_judge = False

    @property
    def metrics(self):
        return (Metric(name="nothing", title="Nothing", unit="%"),)

    def check(self) -> None: ...

    def run(self, model, *, judge, seed, folder=None):
        yield Record("0", "0", "nothing", 1.0)
        raise RuntimeError("the toy benchmark broke")


@register_judge("toy_judge")
class ToyJudge(JudgeConfig):
    strictness: float = 1.0
    model: ModelRef | None = None
    label = property(lambda self: "toy-v1")
    statement = property(lambda self: "A toy judge made these numbers.")


def write_suite(folder: Path, base: Path, **changes) -> Path:
    """A suite of toys with its data in ``folder``; ``changes`` replace top-level keys (None removes one)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"w{i} w{i + 1}", "chosen": f"w{i}", "rejected": f"w{i + 2}"} for i in range(12)]
    (folder / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "questions.jsonl").write_text("".join(json.dumps(f"w{i} w30") + "\n" for i in range(6)))
    suite = {
        "name": "toys",
        "seed": 5,
        "plugins": ["tests.toys"],
        "base": {"path": str(base)},
        "triples": {"path": "triples.jsonl"},
        "budgets": [4, 8],
        "seeds": 2,
        "judge": {"kind": "toy_judge"},
        "benchmarks": [{"name": "toy_bench", "questions": "questions.jsonl"}],
        "variants": [
            {"name": "base", "method": "toy_base"},
            {"name": "noise", "method": "toy_noise", "params": {"scale": 0.2}, "sweep": {"scale": [0.1, 0.3]}},
        ],
        "report": {"baseline": "base"},
    }
    suite = {key: value for key, value in (suite | changes).items() if value is not None}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


class NoProgress:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def stage(self, cell: str, stage: str, records: int) -> None:
        self.told.append((cell, stage, records))

    def over(self, cell: str) -> None:
        self.told.append((cell, "over"))


_TIMES = ("commit", "origin", "host", "lost", "files", "checksum")
"""What of cell.json says when and where and not what."""


def outcome(run: Path) -> dict[str, bytes | dict]:
    """Everything a run says about its models: all cell files but times, logs, bills, commits and origins."""

    def timeless(line: str) -> dict:
        return {k: v for k, v in json.loads(line).items() if k not in ("seconds", "crc", "checksum")}

    found: dict[str, bytes | dict] = {}
    for path in sorted((run / "cells").rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or path.name in ("log.txt", "compute.json", "files.json"):
            continue
        if path.name == "aligned.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "bill"}
        elif path.parent.name == "tuning":
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = {str(number): timeless(line) for number, line in enumerate(lines)}
        elif path.name == "cell.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in _TIMES}
        else:
            found[name] = path.read_bytes()
    return found


def cell_states(run: Path) -> dict[str, CellState]:
    """Of the cells that are over."""
    cells = RunFolder(run).plan.cells if (run / "plan.json").is_file() else ()
    states = {cell.name: RunFolder(run).cell(cell.name).state for cell in cells}
    return {name: state for name, state in states.items() if state is not None}
