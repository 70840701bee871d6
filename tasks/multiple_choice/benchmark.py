"""lm-eval's tasks, evaluated by lm-eval on our model class."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.benchmark import BenchmarkConfig, Metric, Record, register_benchmark
from harness.data.refs import InputPath
from harness.files import write_text
from harness.judging import Judge
from harness.quiet import silenced
from harness.responder import Responder

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask as Task
    from lm_eval.tasks import TaskManager

Shots = Annotated[int, Field(ge=0)]
Items = Annotated[int, Field(ge=1)]

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "tasks": ("mmlu", "arc_easy", "truthfulqa_mc2", "hellaswag", "winogrande"),
        "num_fewshot": {"mmlu": 5, "arc_easy": 25, "hellaswag": 10, "winogrande": 5},
        "metric": {"arc_easy": "acc_norm", "hellaswag": "acc_norm"},
    },
    # The files of these tasks say the rest.
    "paper_local": {
        "tasks": ("mmlu_local", "arc_easy_local", "truthfulqa_mc2_local", "hellaswag_local", "winogrande_local")
    },
}
"""arXiv 2603.21461: MMLU 5-shot, ARC-Easy 25 (acc_norm), TruthfulQA mc2 0, HellaSwag 10 (acc_norm), Winogrande 5."""


@register_benchmark("multiple_choice")
class MultipleChoice(BenchmarkConfig):
    """One metric per task name, in percent: 0 or 100 an item for accuracies, in between for TruthfulQA's mc2.

    The value is the first of ``acc`` and ``acc_norm`` in the task's own list, or ``metric``. A name may be a
    group (mmlu): its subtasks' items all count for it alike, as in lm-eval's aggregation by size. No judge is
    involved. The folder receives results.json, lm-eval's results without the items.
    """

    files: ClassVar[str | None] = "lm_eval"
    needs_judge: ClassVar[bool] = False

    preset: Literal["paper", "paper_local"] | None = Field(
        None, description="the paper's five tasks, examples and metrics; from the hub or the data folder's files"
    )
    tasks: tuple[str, ...] = Field((), description="lm-eval task or group names, unless a preset is given")
    task_folder: InputPath | None = Field(
        None, description="folder of task YAMLs; relative data_files in them are relative to it"
    )
    num_fewshot: Shots | dict[str, Shots] | None = Field(
        None, description="examples in the context, for all or by task name; unless given, the task's"
    )
    limit: Items | dict[str, Items] | None = Field(
        None, description="first items of each task (of each subtask of a group), for all or by name; all unless given"
    )
    metric: str | dict[str, str] | None = Field(None, description="e.g. acc_norm, for all or by task name")
    batch_size: int = Field(64, ge=1, description="continuations scored together")

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, settings: Any) -> Any:
        """A preset stands for the settings that it names."""
        if not isinstance(settings, dict) or settings.get("preset") not in PRESETS:
            return settings
        preset = PRESETS[settings["preset"]]
        if twice := set(preset) & set(settings):
            name, keys = settings["preset"], ", ".join(sorted(twice))
            raise ValueError(f"preset {name!r} sets {keys}; leave them out, or leave out the preset")
        return {**settings, **preset}

    @model_validator(mode="after")
    def _has_tasks(self) -> "MultipleChoice":
        if not self.tasks:
            raise ValueError(f"missing 'tasks' (lm-eval names); give them, or 'preset': {' or '.join(PRESETS)}")
        return self

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One for each of ``tasks``; loads them, because a task says itself which way its metric is better."""
        return tuple(self._declared(name) for name in self.tasks)

    def check(self) -> None:
        """Load the tasks and their data, which is when lm-eval finds out what is wrong with them."""
        for key, value in (("metric", self.metric), ("num_fewshot", self.num_fewshot), ("limit", self.limit)):
            if isinstance(value, dict) and not set(value) <= set(self.tasks):
                extra = ", ".join(sorted(set(value) - set(self.tasks)))
                raise ValueError(f"`{key}:` names tasks that are not in `tasks:`: {extra}")
        _ = self.metrics

    def prompts(self) -> list[str]:
        """The items' own texts, without instructions and few-shot examples."""
        leaves = [(leaf, self._limit(name)) for name in self.tasks for leaf in self._loaded[name]["tasks"].values()]
        texts = [leaf.doc_to_text(doc) for leaf, limit in leaves for doc in list(leaf.eval_docs)[:limit]]
        return [text for text in texts if isinstance(text, str)]

    def run(self, model: Responder, *, judge: Judge | None, seed: int, folder: Path | None = None) -> Iterator[Record]:
        from lm_eval.defaults import DEFAULT_OTHER_SEED
        from lm_eval.evaluator import evaluate
        from lm_eval.utils import handle_non_serializable

        from harness.evaluators.lm_eval import AlignedLM

        aligned = AlignedLM(model, batch_size=self.batch_size)
        written: dict[str, Any] = {}
        for name in self.tasks:
            with silenced():
                for leaf in self._loaded[name]["tasks"].values():
                    leaf.set_fewshot_seed(DEFAULT_OTHER_SEED)  # its command line draws the same examples
                results = evaluate(aligned, self._loaded[name], limit=self._limit(name), bootstrap_iters=0)
            assert results is not None
            samples = results.pop("samples")
            written[name] = results
            for leaf_name, items in samples.items():
                leaf = self._loaded[name]["tasks"][leaf_name]
                metric = self._metric(name, leaf)
                yield from (_record(name, leaf, metric, item, aligned.cut_tokens) for item in items)
        if folder is not None:
            whole = _named({"model": aligned.get_model_info(), "limit": self.limit, "tasks": written})
            write_text(folder / "results.json", json.dumps(whole, indent=2, default=handle_non_serializable) + "\n")

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        """lm-eval's TaskDict (leaf tasks, groups) of each name."""
        from harness.evaluators.lm_eval import task_manager

        with silenced():
            manager = task_manager(self._folder, include_defaults=False)
            if not set(self.tasks) <= set(manager.all_tasks):
                manager = task_manager(self._folder)  # reads thousands of files
        for name in self.tasks:
            if name not in manager.all_tasks:
                local = f" and not among the readable YAMLs in {self._folder}" if self._folder else ""
                raise ValueError(f"task {name!r} is not known to lm-eval{local} (see `dspa-bench lm-eval ls tasks`)")
        return {name: self._load(manager, name) for name in self.tasks}

    def _limit(self, name: str) -> int | None:
        return self.limit.get(name) if isinstance(self.limit, dict) else self.limit

    @property
    def _folder(self) -> str | None:
        if self.task_folder is None:
            return None
        if not self.task_folder.is_dir():
            raise ValueError(f"task_folder {str(self.task_folder)!r} is not a folder")
        return str(self.task_folder.resolve())

    def _load(self, manager: "TaskManager", name: str) -> Any:
        try:
            with silenced(), contextlib.chdir(self._folder or "."):
                loaded = manager.load([name])
        except Exception as problem:
            # A task is somebody's YAML and Python on somebody's data: it may raise anything.
            raise ValueError(f"lm-eval task {name!r} cannot be loaded: {problem!r}") from problem
        for leaf in loaded["tasks"].values():
            if leaf.OUTPUT_TYPE != "multiple_choice":
                raise ValueError(
                    f"lm-eval task {leaf.task_name!r} is of type {leaf.OUTPUT_TYPE!r}; "
                    "this benchmark takes tasks of type 'multiple_choice'"
                )
            # As in lm-eval's simple_evaluate: a task that says 0 examples keeps them.
            own = leaf.get_config("num_fewshot")
            wanted = self.num_fewshot.get(name) if isinstance(self.num_fewshot, dict) else self.num_fewshot
            if own is None or (wanted is not None and own != 0):
                leaf.set_config(key="num_fewshot", value=wanted or 0)
        return loaded

    def _declared(self, name: str) -> Metric:
        """Title and unit of a task's column; ValueError for a group whose subtasks do not measure the same."""
        measured = set()
        for leaf in self._loaded[name]["tasks"].values():
            metric = self._metric(name, leaf)
            accuracy = metric == "exact_match" or metric.startswith("acc")
            measured.add(("accuracy, %" if accuracy else f"100 x {metric}", bool(leaf.higher_is_better()[metric])))
        if len(measured) > 1:
            raise ValueError(f"the subtasks of lm-eval group {name!r} measure different things; list them one by one")
        ((unit, higher_is_better),) = measured
        return Metric(name=name, title=name, unit=unit, higher_is_better=higher_is_better, made_of="choices")

    def _metric(self, name: str, leaf: "Task") -> str:
        known = [entry["metric"] for entry in leaf.config.metric_list]
        wanted = self.metric.get(name) if isinstance(self.metric, dict) else self.metric
        if wanted is None:
            wanted = next((metric for metric in known if metric in ("acc", "acc_norm")), "acc or acc_norm")
        if wanted not in known:
            raise ValueError(
                f"lm-eval task {leaf.task_name!r} has no metric {wanted!r}; set `metric:` to one of: {', '.join(known)}"
            )
        return wanted


def _named(value: Any) -> Any:
    """``value`` with files by their names: lm-eval notes where on this machine they are."""
    if isinstance(value, dict):
        return {key: _named(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner) for inner in value]
    is_place = isinstance(value, str) and os.path.isabs(value) and os.path.exists(value)
    return Path(value).name or value if is_place else value


def _record(
    name: str, leaf: "Task", metric: str, sample: Mapping[str, Any], cut: Mapping[tuple[str, str], int]
) -> Record:
    """One item of lm-eval's samples; ``cut`` says how many tokens a (context, choice) lost on the left."""
    contexts, choices = zip(*sample["arguments"], strict=True)
    scores = [score for score, _ in sample["filtered_resps"]]
    value, error = 100.0 * float(sample[metric]), None
    if not all(math.isfinite(score) for score in scores):
        error = f"log-likelihoods are not all finite: {scores}"
    elif not math.isfinite(value):  # mc2, where the probability of every choice is 0 as a float
        error = f"{metric} cannot be computed from the log-likelihoods {scores}"
    several = getattr(leaf, "multiple_input", 0)  # as in Winogrande: the choices are in the context
    key = f"{sample['doc_id']}" if leaf.task_name == name else f"{leaf.task_name}:{sample['doc_id']}"
    return Record(
        item=key,
        cluster=key,
        metric=name,
        value=value if error is None else None,
        error=error,
        raw={
            "prompt": list(contexts) if several else contexts[0],
            "choices": list(choices),
            "loglikelihoods": [str(score) if not math.isfinite(score) else score for score in scores],
            "gold": leaf.doc_to_text(sample["doc"]) if several else sample["target"],
            "scored_by": metric,
            "cut_tokens": max(cut.get((context, choice), 0) for context, choice in sample["arguments"]),
        },
    )
