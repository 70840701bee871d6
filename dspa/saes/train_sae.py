"""`train-sae`: SAEs of several layers of a base model from one pass over text; killed at any moment, it goes on."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dspa.saes.activations import ActivationFiles, Batches
from dspa.saes.corpus import Corpus, read_corpus
from dspa.saes.encoder import token_blocks
from dspa.saes.new import Seen, finish, sample_of, save_new, train_new
from dspa.saes.plan import Forecast, Plan, TrainSettings, forecast
from dspa.saes.quality import measure_quality
from dspa.saes.sae import ResidualSAE, check_same_model
from harness.data.refs import ModelRef, model_ref
from harness.experiment.check import check_base
from harness.files import atomic_folder, check_can_make, load_json, locked, write_json
from harness.model.aligned import AlignedModel
from harness.model.base import base_shape
from harness.provenance import code_commit, machine, package_versions
from harness.quiet import without_progress_bars

TAIL_TOKENS = 32_768
"""Training tokens, the last of the order, on which a latent must be silent too to be called dead."""
_MEASURE_POSITIONS = 4096
_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Trained:
    """One SAE as it was saved, with what its report.json says."""

    layer: int
    report: dict[str, Any]


class Tell(Protocol):
    """Is told what is done so far, and in words how it goes."""

    def __call__(self, now: int, words: str = "") -> None: ...


class Display:
    """Bars on a terminal, else some lines of each part, which a log file can hold."""

    def __init__(self, console: Console, bars: Progress | None) -> None:
        self._console, self._bars, self._said = console, bars, 0.0

    @contextmanager
    def part(self, name: str, total: int) -> Iterator["Tell"]:
        """What is to be told of a part of ``total`` pieces of work."""
        task = None if self._bars is None else self._bars.add_task(name, total=total, words="")

        def tell(now: int, words: str = "") -> None:
            if self._bars is not None and task is not None:
                self._bars.update(task, completed=now, words=words)
            elif now == total or time.monotonic() - self._said > 20:
                self._said = time.monotonic()
                self._console.print(f"{name}: {now}/{total} {words}".rstrip(), markup=False)

        yield tell


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """A `Display` for this console."""
    if not console.is_terminal:
        yield Display(console, None)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[words]}"), console=console) as bars:
        yield Display(console, bars)


def train_saes(
    base: AlignedModel, plan: Plan, state: Path, *, corpus: Corpus, command: str, show: Display
) -> list[Trained]:
    """Pass the text, train an SAE for each layer and measure it; all in the folder ``state``, finished ones in its
    ``out``. What is there already is gone on from: see `check_state`."""
    files = plan.files(state / "activations")
    reports = {layer: state / "out" / f"layer_{layer}" / "report.json" for layer in plan.settings.layers}
    todo = [layer for layer in plan.settings.layers if not reports[layer].is_file()]
    if todo:
        with show.part("text", len(plan.batches)) as tell:
            files.fill(base, plan.batches, tell)
    for layer in todo:
        _train_layer(base, plan, files, layer, state, corpus=corpus, command=command, show=show)
    return [Trained(layer, load_json(report, "report")) for layer, report in reports.items()]


def _train_layer(
    base: AlignedModel,
    plan: Plan,
    files: ActivationFiles,
    layer: int,
    state: Path,
    *,
    corpus: Corpus,
    command: str,
    show: Display,
) -> None:
    settings, begun = plan.settings, time.monotonic()
    multiple = settings.norm_filter or None
    norms = files.norms(layer)
    limit = None if multiple is None else float(multiple * norms.median())
    kept = torch.arange(len(norms)) if limit is None else (norms <= limit).nonzero().flatten()
    batches = Batches(files, layer, kept, plan.sae.batch_size, settings.seed)
    folder = state / f"training_{layer}"
    with show.part(f"layer {layer}", plan.sae.steps) as tell:
        trainer, seen = train_new(
            plan.sae, batches, folder, device=str(base.device), watch=lambda one: tell(one.step, _words(one))
        )
    finish(trainer, plan.sae, sample_of(batches))
    provenance = {
        "base": {
            "model": base.base.ref.path or base.base.ref.id,
            "identity": base.base.identity,
            "dtype": base.base.ref.dtype,
            "chat": base.chat.identity,
        },
        "text": [source.to_dict() for source in corpus.sources],
        "settings": {**asdict(settings), "latents": plan.sae.latents, "steps": plan.sae.steps},
        "code": code_commit(),
    }
    metadata: dict[str, Any] = {"trained": provenance} | _model_name(base)
    if multiple is not None:
        metadata["norm_filter"] = multiple
    with atomic_folder(state / "out" / f"layer_{layer}") as out:
        sae = save_new(trainer.sae, out, folder / "fp32", dtype=settings.save_dtype, metadata=metadata)
        longest = max(len(text.ids) for text in plan.held_out)
        (quality,) = measure_quality(
            base, [sae], plan.held_out, limit=limit, rows=max(1, _MEASURE_POSITIONS // longest)
        )  # fmt: skip
        dead = len(quality.silent & silent_on(sae, batches, plan.sae.steps))
        config = json.loads((out / "cfg.json").read_text(encoding="utf-8"))
        config["metadata"] |= {"l0": quality.l0, "num_dead_features": dead}
        write_json(out / "cfg.json", config)
        report = {
            "command": command,
            "layer": layer,
            "held_out": quality.to_dict() | {"texts": len(plan.held_out)},
            "dead": {"latents": dead, "share": dead / sae.d_sae, "tokens": quality.tokens + _tail(plan)},
            "left_out": {
                "first_and_special_tokens": plan.first_and_special,
                "norm_limit": limit,
                "training_tokens": len(norms) - len(kept),
                "share": 1 - len(kept) / len(norms),
            },
            "training": {"tokens": plan.sae.steps * plan.sae.batch_size, "batches": [asdict(one) for one in seen]},
            **provenance,
            "versions": package_versions(),
            "machine": machine() | {"threads": torch.get_num_threads(), "device": str(base.device)},
            "seconds": time.monotonic() - begun,
        }
        write_json(out / "report.json", report)
    shutil.rmtree(folder)


def _words(seen: Seen) -> str:
    return f"explained variance {seen.explained_variance:.3f}, L0 {seen.l0:.1f}, dead {seen.dead}"


def _model_name(base: AlignedModel) -> dict[str, str]:
    """The metadata's model name: the public one, or that of the folder or file where it contradicts nothing.

    A folder may be called after another family than the model's, and the SAE would then not fit its own base.
    """
    ref = base.base.ref
    name = ref.id or Path(str(ref.path)).resolve().name.removesuffix(".gguf")
    try:
        check_same_model("SAE", name, base_shape(ref))
    except ValueError:
        return {}
    return {"model_name": name}


def _tail(plan: Plan) -> int:
    return min(plan.sae.steps, -(-TAIL_TOKENS // plan.sae.batch_size)) * plan.sae.batch_size


@torch.no_grad()
def silent_on(sae: ResidualSAE, batches: Batches, steps: int) -> set[int]:
    """Latents active on none of the last `TAIL_TOKENS` tokens (in whole batches) of a training of ``steps``."""
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    count = min(steps, -(-TAIL_TOKENS // batches.size))
    for _, batch in zip(range(count), batches.after(steps - count), strict=False):
        for block in token_blocks(batch.to(sae.sae.W_dec.device), sae.d_sae):
            fired |= (sae.sae.encode(block) > 0).any(0).cpu()
    return set((~fired).nonzero().flatten().tolist())


def check_state(state: Path, wanted: dict[str, Any]) -> bool:
    """Whether ``state`` holds an unfinished training of just that; a new one is noted as that.

    Raises ValueError, naming what differs, where it holds another.
    """
    path = state / "settings.json"
    if not path.is_file():
        write_json(path, wanted)
        return False
    there = load_json(path, "state")
    differs = sorted(key for key in {*wanted, *there} if wanted.get(key) != there.get(key))
    if differs:
        shown = "; ".join(f"{key}: {there.get(key)!r} there, {wanted.get(key)!r} asked for" for key in differs[:3])
        raise ValueError(
            f"{str(state)!r} holds an unfinished training of something else ({shown}); give the same command as "
            "before, remove that folder, or choose another --out"
        )
    return True


def _decisive(base: AlignedModel, plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """All that the weights depend on, as JSON has it."""
    wanted = asdict(plan.settings) | {
        "base": base.base.identity,
        "dtype": base.base.ref.dtype,
        "chat": base.chat.identity,
        "device": str(base.device),
        "threads": torch.get_num_threads(),
        "text": [source.sha256 for source in corpus.sources],
        "torch": torch.__version__,
        "sae_lens": package_versions()["sae-lens"],
    }
    return json.loads(json.dumps(wanted))


def train_sae_command(
    base: str,
    texts: Sequence[Path],
    out: Path,
    settings: TrainSettings,
    *,
    dtype: str,
    chat: str,
    device: str,
    dry_run: bool,
) -> None:
    """The body of `train-sae`: plan, forecast, training, table."""
    without_progress_bars()
    console = Console(soft_wrap=True, highlight=False)
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype {dtype!r} is not known; allowed: {', '.join(_DTYPES)}")
    if not texts:
        raise ValueError("give at least one --text FILE")
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; SAEs are never overwritten")
    check_can_make(out)
    ref: ModelRef = model_ref(base, chat).model_copy(update={"dtype": dtype})
    settings.check(check_base(ref))
    model = AlignedModel.from_base(ref, device=device)
    corpus = read_corpus(model, texts, min(settings.context, model.base.max_length))
    plan = Plan.of(model, corpus, settings)
    for line in plan.lines():
        console.print(line, markup=False)
    guess: Forecast = forecast(model, plan)
    console.print(guess.text, markup=False)
    console.print(f"disk: {plan.disk_bytes / 1e9:.2f} GB while it runs", markup=False)
    plan.check_disk(out)
    if dry_run:
        return
    state = out.with_name(f"{out.name}.partial")
    busy = f"another process is at work in {str(state)!r}; wait for it, or choose another --out"
    with locked(state / "lock", "folder of the unfinished training", busy=busy, mend="choose another --out"):
        if check_state(state, _decisive(model, plan, corpus)):
            console.print(f"going on from {state}", markup=False)
        command = shlex.join(["dspa-bench", *sys.argv[1:]])
        with display(console) as show:
            trained = train_saes(model, plan, state, corpus=corpus, command=command, show=show)
        shutil.rmtree(state / "activations")
        (state / "out").rename(out)
        shutil.rmtree(state)
    _print(console, trained, out)


def _print(console: Console, trained: Sequence[Trained], out: Path) -> None:
    table = Table("layer", "L0", "explained variance", "dead latents", "loss recovered")
    for one in trained:
        held, dead = one.report["held_out"], one.report["dead"]
        figures = f"{held['l0']:.1f}", f"{held['explained_variance']:.4f}", f"{dead['latents']} ({dead['share']:.1%})"
        table.add_row(str(one.layer), *figures, f"{held['loss_recovered']:.4f}")
    console.print(table)
    for one in trained:
        left = one.report["left_out"]
        if left["norm_limit"] is not None:
            console.print(
                f"layer {one.layer}: {left['training_tokens']} training tokens ({left['share']:.2%}) have a norm above "
                f"{left['norm_limit']:.4g} and were left out; so are all such tokens where the SAE is used"
            )
    held = trained[0].report["held_out"]
    console.print(
        f"measured as saved, on {held['tokens']} tokens of {held['texts']} held-out texts, where the base's loss is "
        f"{held['loss']:.3f}; {out}",
        markup=False,
    )
