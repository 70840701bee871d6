"""Everything that can be wrong with a suite, found before any work is done."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from transformers import AutoModelForCausalLM

from harness.benchmark import BENCHMARKS, BenchmarkConfig, Metric
from harness.data.refs import ModelRef
from harness.data.triples import Triple, TripleFile, contaminated, draw_budget, prompt_count
from harness.engine.engine import EngineConfig
from harness.experiment.executors import check_executor
from harness.experiment.plan import decisive_settings
from harness.experiment.processes import check_per_fit
from harness.experiment.room import Room, fitting_benchmark, fitting_triples
from harness.experiment.source import Key
from harness.experiment.suite import Suite
from harness.judging import Judge
from harness.method import BaseShape, MethodConfig
from harness.model.base import base_shape, check_device, check_weights
from harness.model.chat import ChatFormat
from harness.model.dequantised import source_of
from harness.model.pretrained import read_tokenizer
from harness.run_folder.cell import CELL_ENTRIES
from harness.run_folder.left_out import LeftOut, LeftOutItem

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Checked:
    """What checking had to read: the triples, each once, and each benchmark's number of prompts.

    ``notes`` are what is no reason to refuse the suite, but a user has to know. ``left_out`` is what does not fit the
    context and is to be left out; it is neither among the triples nor counted among the prompts.
    """

    triples: tuple[Triple, ...]
    prompts: dict[str, int]
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)


def check_suite(suite: Suite, *, on_paper: bool = False, answering: bool = True) -> Checked:
    """Check files, sizes and budgets; raises one ValueError listing every problem and its place in the suite.

    ``on_paper``, where only a plan is made, neither this machine's devices count nor the weights of base and SAEs.
    Without ``answering`` the engine that would generate answers need not be there.

    Evaluation prompts that occur among the training prompts are refused: their scores would say nothing. So are triples
    and prompts that do not fit the base model's context, unless the suite leaves them out (``too_long: skip``).
    """
    file, problems = suite.file, _Problems(suite)
    per_fit = file.execution.per_fit
    # A node's device is looked at when it loads the model, and so is one that is on paper alone.
    if not on_paper and file.execution.executor == "local":
        problems.of(("execution", "device"), check_device, file.execution.device)
    if not on_paper:
        problems.of(("execution", "executor"), check_executor, suite)
        problems.of(("execution", "per_fit"), check_per_fit, per_fit, file.execution.device)
    problems.of(("base", "device_map"), _check_spread, suite)
    shape = problems.of(("base",), check_base, file.base, on_paper=on_paper)
    for name, ref in file.saes.items():
        if ref.path is not None and not (Path(ref.path) / "cfg.json").is_file():
            text = f"SAE folder {ref.path!r} has no cfg.json; give a folder in SAELens format"
            problems.add(("saes", name), text)
    if shape is not None and not problems.texts:
        for key, method in suite.methods:
            problems.of(key, method.check, shape)
            if per_fit.processes > 1 and method.uses_triples:
                problems.of(key, method.check_processes, per_fit.processes, sharded=per_fit.sharded)
            if suite.engine is not None:
                problems.of(key, _check_steering, method, suite.engine, shape)
        if suite.engine is not None and answering and not on_paper:
            problems.of(("execution", "engine"), suite.engine.check, file.base)
    judges_prompts = _check_judges(suite, problems)
    if any(variant.space is not None for variant in suite.variants):
        problems.of(("tune", "score"), _check_tuning_judge, suite)
    instructions = tuple(text for _, method in suite.methods for text in method.instructions)
    room = None if shape is None else Room.of(file.base).given(instructions)
    prompts: dict[str, list[str]] = {}
    left_out: dict[str, tuple[LeftOutItem, ...]] = {}
    notes: list[str] = []
    owners: dict[str, str] = {}
    for index, (name, benchmark) in enumerate(suite.benchmarks.items()):
        before = len(problems.texts)
        problems.of(("benchmarks", index), _check_folder, name, benchmark, list(suite.benchmarks.items())[:index])
        problems.of(("benchmarks", index), benchmark.check)
        if benchmark.needs_judge and suite.judge is None:
            problems.add(("benchmarks", index), f"benchmark {name!r} needs a judge; add `judge:` to the suite")
        if len(problems.texts) == before:
            fitted = problems.of(("benchmarks", index), fitting_benchmark, name, benchmark, room)
            if fitted is not None:
                benchmark, long, note = fitted
                left_out |= {name: tuple(long)} if long else {}
                notes += [note] if note is not None else []
            prompts[name] = benchmark.prompts()
            problems.of(("benchmarks", index), _check_metrics, name, benchmark, owners)
    found = problems.of(("triples", "path"), TripleFile.read, file.triples.path)
    triples: list[Triple] | None = None
    too_long: list[LeftOutItem] = []
    if found is not None:
        about = list(found.notes)
        triples = list(found.distinct.values())
        if room is not None:
            room = room.given(text for _, method in suite.methods for text in method.fit_instructions)
            option = "`too_long: skip` under `triples:`"
            kept = problems.of(("triples", "path"), fitting_triples, found, room, file.triples.too_long, option)
            if kept is not None:
                triples, too_long, note = kept
                about += [note] if note is not None else []
        notes = [*about, *notes]
        for index, budget in enumerate(file.budgets):
            if budget > len(triples):
                text = f"budget {budget} is larger than the data: {file.triples.path} has {len(triples)} triples"
                text += "".join(f" ({note})" for note in about)
                problems.add(("budgets", index), text)
        if not problems.texts and any(variant.space is not None for variant in suite.variants):
            for index, budget in enumerate(file.budgets):
                problems.of(("budgets", index), _check_can_be_split, suite, triples, budget)
            for index, _ in enumerate(file.flops_budgets):
                problems.of(("flops_budgets", index), _check_can_be_split, suite, triples, len(triples))
        advice = "remove those triples (or those questions)"
        for name, texts in prompts.items():
            problems.of(("triples", "path"), _check_unseen, triples, texts, f"evaluation prompts of {name}", advice)
        advice = "a judge made from what methods are trained on favours them: give it other triples"
        for key, texts in judges_prompts.items():
            problems.of((key, "triples"), _check_unseen, triples, texts, "of the judge's own prompts", advice)
    if problems.texts:
        text = "\n".join(dict.fromkeys(problems.texts))
        raise ValueError(text if suite.shipped is None else text + suite.shipped.how_to_make(text))
    assert triples is not None
    assert room is not None
    counts = {name: len(texts) for name, texts in prompts.items()}
    if on_paper:
        notes.append("planned on paper: the weights of base and SAEs were not looked at, and need not be there")
    if shape is not None:
        notes += dict.fromkeys(note for _, method in suite.methods for note in method.notes(shape))
    left = LeftOut(context=room.max_length, triples=tuple(too_long), benchmarks=left_out)
    return Checked(tuple(triples), counts, tuple(notes), left)


class _Problems:
    """Collects complaints, so that a user mends a suite in one round."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.texts: list[str] = []

    def add(self, key: Key, text: str) -> None:
        self.texts.append(str(self.suite.source.error(key, text)))

    def of(self, key: Key, check: Callable[P, T], *args: P.args, **settings: P.kwargs) -> T | None:
        """What ``check(*args)`` returns; None when it raises ValueError, which is a complaint about ``key``, or cannot
        read a file."""
        try:
            return check(*args, **settings)
        except ValueError as problem:
            self.add(key, str(problem))
        except OSError as problem:  # no permission, a name too long, a loop of links
            self.add(key, f"{problem.strerror}: {str(problem.filename)[:200]!r}; give another path")
        return None


def _check_folder(name: str, benchmark: BenchmarkConfig, others: Iterable[tuple[str, BenchmarkConfig]]) -> None:
    """What a suite calls a benchmark is no other one's name, and names nothing that a cell has anyway."""
    taken = dict.fromkeys(CELL_ENTRIES, "a cell has a file or folder of this name")
    taken |= {other.folder(one): f"benchmark {one!r} keeps its files under this name" for one, other in others}
    if name != benchmark.name:
        taken |= dict.fromkeys(BENCHMARKS, "this is another benchmark's name")
    folder = benchmark.folder(name)
    if folder in taken:
        raise ValueError(f"benchmark {name!r} cannot use {folder!r}: {taken[folder]}; give another `as: NAME`")


def _check_metrics(name: str, benchmark: BenchmarkConfig, owners: dict[str, str]) -> None:
    """A metric is one column, so it belongs to one benchmark; adds those of ``name`` to ``owners``."""
    for metric in benchmark.metrics:
        if not isinstance(metric, Metric):
            raise ValueError(f"benchmark {name!r} declares {metric!r}; declare a harness.benchmark.Metric")
        column = benchmark.column(metric.name, name)
        owner = owners.setdefault(column, name)
        if owner != name:
            text = f"benchmark {name!r} declares the metric {column!r}, which {owner!r} declares too"
            raise ValueError(f"{text}; leave one of them out")


def _check_judges(suite: Suite, problems: _Problems) -> dict[str, list[str]]:
    """{key of a judge: the prompts it was made from} for those that are in order."""
    prompts = {}
    for key, judge in suite.judges.items():
        before = len(problems.texts)
        problems.of((key,), judge.check)
        if len(problems.texts) == before:
            prompts[key] = judge.prompts()
    first, second = suite.judge, suite.second_judge
    capped = any(getattr(judge, "max_cost", None) is not None for judge in suite.judges.values())
    for index, benchmark in enumerate(suite.benchmarks.values() if capped else ()):
        if (key := benchmark.cap_key) is not None and getattr(benchmark, key) is None:
            text = f"it asks a server of its own, and the judge's max_cost is the run's: give {key} too, or --max-cost"
            problems.add(("benchmarks", index), text)
    if first is not None:
        for index, benchmark in enumerate(suite.benchmarks.values()):
            problems.of(("benchmarks", index), _check_asks, first, benchmark)
    if second is None:
        return prompts
    if first is None:
        problems.add(("second_judge",), "a second judge needs a first one to agree with; add `judge:` to the suite")
    elif len(prompts) == 2 and type(second) is type(first) and decisive_settings(second) == decisive_settings(first):
        # Its replies are kept once for both, whatever server each names.
        text = "this is the first judge again, which always agrees with itself; give another"
        how = "" if second == first else " (where it is asked, or how, makes no other judge)"
        problems.add(("second_judge",), text + how)
    for name in suite.judged_twice:
        problems.of(("second_judge",), _check_asks, second, suite.benchmarks[name])
        if not suite.benchmarks[name].needs_judge:
            text = f"benchmark {name!r} has no judge, so there is nothing to judge again; leave it out of `benchmarks`"
            problems.add(("second_judge",), text)
    if not suite.judged_twice:
        problems.add(("second_judge",), "there is nothing for it to judge: no benchmark of the suite needs a judge")
    return prompts


def _check_asks(judge: Judge, benchmark: BenchmarkConfig) -> None:
    missing = sorted(benchmark.asks - judge.verbs)
    if missing:
        raise ValueError(
            f"benchmark {benchmark.name!r} asks for {' and '.join(missing)}, which judge {judge.name!r} cannot give "
            f"(it gives {' and '.join(sorted(judge.verbs))}); take another judge, or leave this benchmark out"
        )


def _check_steering(method: MethodConfig, engine: EngineConfig, base: BaseShape) -> None:
    """All variants of a run are answered by one engine."""
    if method.steers:
        try:
            engine.check_steering(base)
        except ValueError as problem:
            raise ValueError(
                f"method {method.name!r} steers, and {problem}; all variants of a run are answered by one engine, so "
                "leave this variant out, or take `execution.engine` out for all of them"
            ) from None


def _check_tuning_judge(suite: Suite) -> None:
    if suite.file.tune.score != "judge":
        return
    if suite.judge is None:
        raise ValueError("tuning by the judge needs one; add `judge:` to the suite")
    if "rate" not in suite.judge.verbs:
        raise ValueError(f"tuning by the judge asks for ratings, which judge {suite.judge.name!r} cannot give")


def _check_can_be_split(suite: Suite, triples: list[Triple], size: int) -> None:
    """Tuning fits on some prompts of a budget and scores on others."""
    for seed in range(suite.file.seeds):
        prompts = prompt_count(draw_budget(triples, size, seed=suite.file.seed + seed).triples)
        if prompts < 2:
            raise ValueError(
                f"a budget of {size} triples with {prompts} prompt cannot be split for tuning, which takes 2 prompts; "
                "give a larger budget, or variants without `tune`"
            )


def _check_spread(suite: Suite) -> None:
    """Raise ValueError for what a base that is spread over the devices cannot be used for."""
    file, execution = suite.file, suite.file.execution
    if file.base.device_map is None:
        return
    owners = dict.fromkeys(v.name for v in suite.variants if v.method.own_network)
    for wrong, text in (
        (execution.workers > 1, f"{execution.workers} workers would each spread a copy over them; set workers to 1"),
        (execution.per_fit.processes > 1, "the processes of a fit need a device each; set per_fit.processes to 1"),
        (":" in execution.device, f"device {execution.device!r} is one; name no device, or no device_map"),
        (owners, f"{', '.join(owners)}: what has an adapter or weights of its own needs the base on one device"),
    ):
        if wrong:
            raise ValueError(f"device_map: {file.base.device_map} spreads the base over all devices, and {text}")


def check_base(ref: ModelRef, *, on_paper: bool = False) -> BaseShape:
    """The shape of the base model and what its tokenizer does not know, without holding the model.

    Raises ValueError when configuration, tokenizer or, but for ``on_paper``, weights cannot be read or are not all
    there.
    """
    if not on_paper:
        check_weights(ref)
    shape = base_shape(ref)
    tokenizer = read_tokenizer(source_of(ref), revision=ref.revision)
    chat = ChatFormat.of(tokenizer, ref.chat)
    if not on_paper:
        check_weights(ref, AutoModelForCausalLM)
    return replace(shape, unknown_words=chat.unknown_words, vocabulary=tokenizer.get_vocab(), on_paper=on_paper)


def _check_unseen(triples: list[Triple], prompts: list[str], whose: str, advice: str) -> None:
    shared = contaminated(triples, prompts)
    if shared:
        found = f"{len(shared)} {whose} also occur among the training prompts, first: {shared[0]!r}"
        raise ValueError(f"{found}; {advice}")
