"""lm-eval's tasks of any kind, evaluated by lm-eval on our model class.

Records are one metric's values of single items, so it must be one whose figure is their mean; results.json has all that
lm-eval computes, in its own form and with standard errors.
"""

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from unittest.mock import patch

from pydantic import Field, model_validator

from harness.benchmark import BenchmarkConfig, Metric, Record, Request, register_benchmark
from harness.data.refs import InputPath
from harness.files import write_text
from harness.judging import Judge
from harness.plugins import need
from harness.quiet import silenced
from harness.responder import Responder

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask as Task
    from lm_eval.tasks import TaskManager

BITS_PER_BYTE = "bits_per_byte"
_RESAMPLES = 1000
_MAX_GEN_TOKS = 256
"""What lm-eval lets a task generate that does not say."""
_SAMPLED = 200
"""Items of a task that a forecast looks at, about."""
_KINDS: dict[str, Literal["choices", "measurements", "loglikelihoods"]] = {
    "multiple_choice": "choices",
    "generate_until": "measurements",
    "loglikelihood": "loglikelihoods",
    "loglikelihood_rolling": "loglikelihoods",
}
"""What a record of a task of each type rests on."""
Shots = Annotated[int, Field(ge=0)]
Items = Annotated[int, Field(ge=1)]


@register_benchmark("lm_eval")
class LMEval(BenchmarkConfig):
    """One metric per task name: choices, generated answers (GSM8K, IFEval), or rolling log-likelihoods (WikiText).

    A share or accuracy is in percent, 0 or 100 an item. The value is the task's first metric that is a mean over items,
    under its first filter, or ``metric``, as in lm-eval's results: ``exact_match,flexible-extract``. Rolling tasks give
    bits per byte of each document, whose mean is not lm-eval's figure for the corpus, where longer documents count for
    more. A name may be a group (mmlu): its subtasks' items all count for it alike, as in lm-eval's aggregation by size.
    No judge is involved. The folder receives results.json in lm-eval's form, without the items.
    """

    files: ClassVar[str | None] = "lm_eval_tasks"
    needs_judge: ClassVar[bool] = False
    output_types: ClassVar[frozenset[str]] = frozenset(
        {"multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling"}
    )
    preferred: ClassVar[tuple[str, ...]] = ()

    tasks: tuple[str, ...] = Field((), description="lm-eval task or group names")
    task_folder: InputPath | None = Field(
        None, description="folder of task YAMLs; relative data_files in them are relative to it"
    )
    num_fewshot: Shots | dict[str, Shots] | None = Field(
        None, description="examples in the context, for all or by task name; unless given, the task's"
    )
    limit: Items | dict[str, Items] | None = Field(
        None, description="first items of each task (of each subtask of a group), for all or by name; all unless given"
    )
    metric: str | dict[str, str] | None = Field(
        None, description="e.g. acc_norm, or with a filter exact_match,strict-match; for all or by task name"
    )
    apply_chat_template: bool = Field(False, description="ask in the model's chat format")
    fewshot_as_multiturn: bool | None = Field(
        None, description="examples as turns of a conversation; unless given, as in lm-eval: with a chat template"
    )
    system_instruction: str | None = Field(
        None, min_length=1, description="in front of every prompt; with a template, its system turn"
    )
    gen_kwargs: dict[str, Any] = Field({}, description="over a generating task's own, e.g. max_gen_toks: 128")
    batch_size: int = Field(64, ge=1, description="continuations scored, or answers generated, together")

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if not self.tasks:
            raise ValueError("missing 'tasks' (lm-eval names); give them")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn: there are turns only with `apply_chat_template: true`; set both")
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
        with silenced():  # a task may prepare its documents when it is asked for them
            texts = [leaf.doc_to_text(doc) for leaf, limit in leaves for doc in list(leaf.eval_docs)[:limit]]
        return [text for text in texts if isinstance(text, str) and text.strip()]  # rolling tasks have none

    def requests(self) -> list[Request] | None:
        """Items evenly drawn from each task, without a chat template; None where a task makes no requests that way."""
        from lm_eval.defaults import DEFAULT_OTHER_SEED

        found = []
        try:
            for name in self.tasks:
                leaves = list(self._loaded[name]["tasks"].values())
                for leaf in leaves:
                    with silenced(), contextlib.redirect_stdout(io.StringIO()):
                        size = min(len(leaf.eval_docs), self._limit(name) or len(leaf.eval_docs))
                        drawn = range(0, size, max(1, size * len(leaves) // _SAMPLED))
                        leaf.set_fewshot_seed(DEFAULT_OTHER_SEED)
                        leaf.build_all_requests(samples=list(drawn), system_instruction=self.system_instruction)
                    found += _requests(leaf.instances, size / len(drawn))
        except Exception:  # a task may raise anything, and a run finds out by itself
            return None
        return found

    def run(self, model: Responder, *, judge: Judge | None, seed: int, folder: Path | None = None) -> Iterator[Record]:
        from lm_eval.defaults import DEFAULT_OTHER_SEED
        from lm_eval.evaluator import evaluate
        from lm_eval.utils import handle_non_serializable

        from harness.evaluators.lm_eval import AlignedLM

        aligned = AlignedLM(model, batch_size=self.batch_size)
        multiturn = self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn
        how = {
            "system_instruction": self.system_instruction,
            "apply_chat_template": self.apply_chat_template,
            "fewshot_as_multiturn": multiturn,
        }
        start = time.time()
        whole: dict[str, Any] = {}
        for name in self.tasks:
            # Standard errors of corpus metrics are bootstrapped, by lm-eval in processes of its own unless told not to.
            with silenced(), contextlib.redirect_stdout(io.StringIO()), patch.dict(os.environ, DISABLE_MULTIPROC="1"):
                for leaf in self._loaded[name]["tasks"].values():
                    leaf.set_fewshot_seed(DEFAULT_OTHER_SEED)  # its command line draws the same examples
                limit = self._limit(name)
                results = evaluate(aligned, self._loaded[name], limit=limit, bootstrap_iters=_RESAMPLES, **how)
            assert results is not None
            samples = results.pop("samples")
            for key, part in results.items():
                whole[key] = {**whole.get(key, {}), **part} if isinstance(part, dict) else part
            for leaf_name, items in samples.items():
                leaf = self._loaded[name]["tasks"][leaf_name]
                metric, chosen = self._metric(name, leaf)
                kept = [item for item in items if item["filter"] == chosen]
                yield from (_record(name, leaf, metric, item, aligned.cut_tokens) for item in kept)
        if folder is not None:
            settings = self.model_dump(include={"batch_size", "limit", "gen_kwargs"}) | {"bootstrap_iters": _RESAMPLES}
            whole["config"] = {"model": "aligned", **aligned.get_model_info(), **settings}
            name = f"{model.method}-{model.fingerprint[:12]}"
            whole |= {"date": start, "model_source": "aligned", "model_name": name}
            whole |= how | {"chat_template": aligned.chat_template(self.apply_chat_template)}
            text = json.dumps(_named(whole), indent=2, default=handle_non_serializable)
            write_text(folder / "results.json", text + "\n")

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        """lm-eval's TaskDict (leaf tasks, groups) of each name."""
        need("lm_eval", f"benchmark {self.name!r}")
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
            if leaf.OUTPUT_TYPE not in self.output_types:
                raise ValueError(
                    f"lm-eval task {leaf.task_name!r} is of type {leaf.OUTPUT_TYPE!r}; benchmark {self.name!r} takes "
                    f"tasks of type {', '.join(sorted(self.output_types))}{self._elsewhere}"
                )
            if getattr(leaf, "UNSAFE_CODE", False) or getattr(leaf, "MULTIMODAL", False):
                what = "runs code that a model wrote" if getattr(leaf, "UNSAFE_CODE", False) else "shows pictures"
                raise ValueError(f"lm-eval task {leaf.task_name!r} {what}, which a suite does not; leave it out")
            if self.gen_kwargs and leaf.OUTPUT_TYPE == "generate_until":
                leaf.set_config(key="generation_kwargs", value=dict(self.gen_kwargs), update=True)
            # As in lm-eval's simple_evaluate: a task that says 0 examples keeps them.
            own = leaf.get_config("num_fewshot")
            wanted = self.num_fewshot.get(name) if isinstance(self.num_fewshot, dict) else self.num_fewshot
            if own is None or (wanted is not None and own != 0):
                leaf.set_config(key="num_fewshot", value=wanted or 0)
        return loaded

    @property
    def _elsewhere(self) -> str:
        """Which benchmark takes the other types."""
        return ""

    def _declared(self, name: str) -> Metric:
        """Title and unit of a task's column; ValueError for a group whose subtasks do not measure the same."""
        measured = set()
        for leaf in self._loaded[name]["tasks"].values():
            metric, chosen = self._metric(name, leaf)
            kind = _KINDS[leaf.OUTPUT_TYPE]
            title = name if len(leaf._filters) == 1 else f"{name} ({chosen})"
            if metric == BITS_PER_BYTE:
                unit = "bits per byte, mean over documents"
            else:
                unit = "accuracy, %" if metric == "exact_match" or "acc" in metric.split("_") else f"100 x {metric}"
            measured.add((title, unit, bool(leaf.higher_is_better()[metric]), kind))
        if len(measured) > 1:
            raise ValueError(f"the subtasks of lm-eval group {name!r} measure different things; list them one by one")
        ((title, unit, higher_is_better, kind),) = measured
        digits = 3 if unit.startswith("bits") else 1
        return Metric(name=name, title=title, unit=unit, higher_is_better=higher_is_better, digits=digits, made_of=kind)

    def _metric(self, name: str, leaf: "Task") -> tuple[str, str]:
        """(metric, filter) that the records of a task are made of."""
        from lm_eval.api.metrics import mean

        filters = [each.name for each in leaf._filters]
        known = [entry["metric"] for entry in leaf.config.metric_list]
        usable = [m for m in known if m == BITS_PER_BYTE or leaf.aggregation()[m] is mean]
        wanted = self.metric.get(name) if isinstance(self.metric, dict) else self.metric
        if wanted is None:
            chosen = next((metric for metric in usable if not self.preferred or metric in self.preferred), None)
            if chosen is not None:
                return chosen, filters[0]
            wanted = " or ".join(self.preferred) or "that is a mean over items"
        metric, _, chosen = wanted.partition(",")
        if metric not in usable or chosen not in ("", *filters):
            corpus = [one for one in known if one not in usable]
            said = f" ({', '.join(corpus)} of a whole corpus: results.json has it)" if corpus else ""
            with_filters = f", with one of its filters: {', '.join(filters)}" if len(filters) > 1 else ""
            raise ValueError(
                f"lm-eval task {leaf.task_name!r} has no metric {wanted!r}; set `metric:` to one of: "
                f"{', '.join(usable) or 'none'}{with_filters}{said}"
            )
        return metric, chosen or filters[0]


def _record(
    name: str, leaf: "Task", metric: str, sample: Mapping[str, Any], cut: Mapping[tuple[str, str], int]
) -> Record:
    """One item of lm-eval's samples; ``cut`` says how many tokens a (context, choice) lost on the left."""
    choosing = leaf.OUTPUT_TYPE == "multiple_choice"
    raw = _choices(leaf, sample, cut) if choosing else _answer(leaf, sample, cut)
    scores = [score for score, _ in sample["filtered_resps"]] if choosing else []
    value, error = _value(metric, sample[metric]), None
    if not all(math.isfinite(score) for score in scores):
        error = f"log-likelihoods are not all finite: {scores}"
    elif not math.isfinite(value):  # mc2, where the probability of every choice is 0 as a float
        error = f"{metric} cannot be computed from the log-likelihoods {scores or sample['filtered_resps']}"
    key = f"{sample['doc_id']}" if leaf.task_name == name else f"{leaf.task_name}:{sample['doc_id']}"
    return Record(key, key, name, value if error is None else None, error, raw | {"scored_by": metric})


def _requests(instances: Iterable[Any], count: float) -> list[Request]:
    """Those of lm-eval, an item's continuations of one context together."""
    scored: dict[tuple[int, str], list[str]] = {}
    found = []
    for one in instances:
        if one.request_type == "generate_until":
            context, settings = one.args
            found.append(Request(context, generated=settings.get("max_gen_toks", _MAX_GEN_TOKS), count=count))
        else:
            *context, text = one.args
            scored.setdefault((one.doc_id, "".join(context)), []).append(text)
    return found + [Request(context, tuple(texts), count=count) for (_, context), texts in scored.items()]


def _value(metric: str, measured: Any) -> float:
    """In the unit that is declared; lm-eval measures a document by its log-likelihood in nats and its length."""
    if metric == BITS_PER_BYTE:
        loglikelihood, length = measured
        return -float(loglikelihood) / (length * math.log(2))
    return 100.0 * float(measured)


def _choices(leaf: "Task", sample: Mapping[str, Any], cut: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    contexts, choices = zip(*sample["arguments"], strict=True)
    scores = [score for score, _ in sample["filtered_resps"]]
    several = getattr(leaf, "multiple_input", 0)  # as in Winogrande: the choices are in the context
    return {
        "prompt": list(contexts) if several else contexts[0],
        "choices": list(choices),
        "loglikelihoods": [_plain(score) for score in scores],
        "gold": leaf.doc_to_text(sample["doc"]) if several else sample["target"],
        "cut_tokens": max(cut.get((context, choice), 0) for context, choice in sample["arguments"]),
    }


def _answer(leaf: "Task", sample: Mapping[str, Any], cut: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """What was asked and what was answered, or how likely the given text was."""
    if leaf.OUTPUT_TYPE == "loglikelihood_rolling":
        ((text,),) = sample["arguments"]
        return {"text": text, "loglikelihood": _plain(sample["filtered_resps"][0])}
    prompt, given = sample["arguments"][0]
    if leaf.OUTPUT_TYPE == "generate_until":
        found = {"answer": sample["resps"][0][0], "extracted": sample["filtered_resps"][0], "filter": sample["filter"]}
        return {"prompt": prompt, **found, "gold": sample["target"], "cut_tokens": cut.get((prompt, ""), 0)}
    score, greedy = sample["filtered_resps"][0]
    scored = {"continuation": given, "loglikelihood": _plain(score), "greedy": bool(greedy)}
    return {"prompt": prompt, **scored, "cut_tokens": cut.get((prompt, given), 0)}


def _plain(score: float) -> float | str:
    """JSON has no number for what is not finite."""
    return score if math.isfinite(score) else str(score)


def _named(value: Any) -> Any:
    """``value`` with files by their names: lm-eval notes where on this machine they are."""
    if isinstance(value, dict):
        return {key: _named(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner) for inner in value]
    is_place = isinstance(value, str) and os.path.isabs(value) and os.path.exists(value)
    return Path(value).name or value if is_place else value
