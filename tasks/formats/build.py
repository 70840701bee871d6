"""Builds the assets from a base model: prompts, samples, triples, evaluation sets, and a manifest of how it went."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.refs import ModelRef
from harness.data.triples import load_triples, triples_hash
from harness.files import check_can_make, content_hash, read_jsonl, write_json, write_jsonl
from tasks.formats.prompts import FAMILIES, PREFERRED, Part, Prompt, all_prompts, of_part
from tasks.formats.samples import MAX_NEW_TOKENS, OWN_TOKENS, TEMPERATURE, Samples, batches, own_answers, sample
from tasks.formats.triples import figures, forms_of, rows_of
from tasks.sandbox.build import one_thread

if TYPE_CHECKING:
    from harness.model.aligned import AlignedModel

GENERATOR_VERSION = 1
SAMPLED: tuple[Part, ...] = ("triples", "triples_heldout")
OWN_TOGETHER = 39
"""The model's own answers are decoded in batches of so many."""


def build(ref: ModelRef, out: Path, *, seed: int = 0, say: Callable[[str], object] = print) -> None:
    """Write all assets into ``out``; other files there are left alone. Runs on one thread.

    What is sampled is kept batch by batch in ``out``.partial, so the same command goes on after an interruption; the
    assets are written when all of it is there, the manifest last. Raises ValueError when ``out`` cannot be made or the
    base cannot be read.
    """
    from harness.model.aligned import AlignedModel
    from harness.model.base import check_weights

    check_can_make(out)
    check_weights(ref)
    prompts = all_prompts(seed)
    with one_thread():
        base = AlignedModel.from_base(ref)
        # Samples of another model or generator are no part of these.
        kind = f"{base.base.identity[:12]}-{ref.dtype}-v{GENERATOR_VERSION}-seed{seed}"
        partial = out.with_name(f"{out.name}.partial") / kind
        samples, own = _sampled(base, prompts, partial, seed, say)
        say("scoring the training answers under the base model")
        write_assets(out, prompts, samples, own)
        manifest = {
            "generator_version": GENERATOR_VERSION,
            "seed": seed,
            "base": {"content": base.base.identity, "dtype": ref.dtype, "parameters": base.model.num_parameters()},
            "max_new_tokens": {"instructed": MAX_NEW_TOKENS, "own": OWN_TOKENS},
            "temperature": TEMPERATURE,
            "surprise": surprise(base, out / "triples.jsonl"),
            **summary(out, prompts, samples, own),
            "made_with": made_with(),
        }
    write_json(out / "manifest.json", manifest)
    shutil.rmtree(partial.parent)


def write_assets(out: Path, prompts: Sequence[Prompt], samples: Mapping[str, Samples], own: Mapping[str, str]) -> None:
    """Everything but the manifest, from what was sampled: the same bytes for the same samples. Needs no model."""
    write_jsonl(out / "prompts.jsonl", [vars(prompt) for prompt in prompts])
    write_jsonl(out / "samples.jsonl", [samples[p.id].row() for part in SAMPLED for p in of_part(prompts, part)])
    write_jsonl(out / "own_answers.jsonl", [{"prompt": text, "answer": answer} for text, answer in own.items()])
    for part in SAMPLED:
        write_jsonl(out / f"{part}.jsonl", rows_of(prompts, part, samples, own))
    write_jsonl(out / "mt_bench" / "question.jsonl", mt_bench_questions(prompts))
    write_json(out / "alpaca_eval" / "reference_outputs.json", alpaca_references(prompts, own))


def mt_bench_questions(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Two-turn questions in FastChat's question.jsonl format: the category is the first turn's family, the second turn
    is of another one."""
    by_id = {prompt.id: prompt for prompt in prompts}
    seconds = [(by_id[second.after], second) for second in of_part(prompts, "mt_bench") if second.after]
    seconds.sort(key=lambda pair: FAMILIES.index(pair[0].family))
    return [
        {"question_id": number, "category": first.family, "turns": [first.text, second.text]}
        for number, (first, second) in enumerate(seconds, 1)
    ]


def alpaca_references(prompts: Sequence[Prompt], own: Mapping[str, str]) -> list[dict[str, str]]:
    """Instructions in AlpacaEval's format; the reference is what the base model answers greedily by itself."""
    return [
        {"instruction": p.text, "output": own[p.text], "generator": "base_greedy", "dataset": p.family}
        for p in of_part(prompts, "alpaca_eval")
    ]


def answered_alone(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that the model answers in its own way: references, and first turns in the triples."""
    before = {prompt.after for part in SAMPLED for prompt in of_part(prompts, part)}
    return [*of_part(prompts, "alpaca_eval"), *(prompt for prompt in prompts if prompt.id in before)]


def read_samples(folder: Path) -> tuple[dict[str, Samples], dict[str, str]]:
    """(samples by prompt id, own answers by prompt) of an assets folder."""
    samples = [Samples.of(row) for _, row in read_jsonl(folder / "samples.jsonl", "samples")]
    own = {row["prompt"]: row["answer"] for _, row in read_jsonl(folder / "own_answers.jsonl", "own answers")}
    return {one.id: one for one in samples}, own


def summary(
    out: Path, prompts: Sequence[Prompt], samples: Mapping[str, Samples], own: Mapping[str, str]
) -> dict[str, Any]:
    """Yields and lengths of each set of triples, forms of the model's own answers, and what identifies the files."""
    found: dict[str, Any] = {}
    for part in SAMPLED:
        rows = [row for _, row in read_jsonl(out / f"{part}.jsonl", "triples")]
        found[part] = {
            "hash": triples_hash(load_triples(out / f"{part}.jsonl"), in_order=True),
            **figures(of_part(prompts, part), samples, rows),
        }
    training = [p for p in answered_alone(prompts) if p.part in SAMPLED]
    files = ("prompts.jsonl", "samples.jsonl", "own_answers.jsonl", "mt_bench", "alpaca_eval")
    found["own_forms"] = forms_of(training, own)
    found["files"] = {name: content_hash(out / name) for name in files}
    return found


def surprise(base: "AlignedModel", triples: Path) -> dict[str, float]:
    """Quantiles of the mean surprise (nats a token) of the chosen and rejected training answers under the base, without
    instruction; `Verifiable.max_nats` is the 99th percentile."""
    import numpy as np

    requests = []
    for triple in load_triples(triples):
        prompt, *answers = base.triple_ids(triple)
        requests += [(prompt, answer) for answer in answers]
    scored = base.loglikelihood_tokens(requests, batch_size=32)
    nats = [-value / len(answer) for (value, _), (_, answer) in zip(scored, requests, strict=True)]
    levels = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    return {f"p{round(100 * level)}": round(float(np.quantile(nats, level)), 3) for level in levels}


def made_with() -> dict[str, Any]:
    """What the samples' last bits depend on: versions and the kind of CPU."""
    import torch

    from harness.provenance import machine

    return {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cpu": machine()["cpu"],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def show(folder: Path, number: int) -> str:
    """The first triples of each family, with what the checker says of both answers."""
    from tasks.formats.content import content_of
    from tasks.formats.forms import scores

    rows: dict[str, dict[str, Any]] = {}
    for _, row in read_jsonl(folder / "triples.jsonl", "triples"):
        rows.setdefault(row["source"], row)
    prompts = [prompt for prompt in all_prompts() if prompt.id in rows]
    text = []
    for family in FAMILIES:
        for prompt in [p for p in prompts if p.family == family][:number]:
            row = rows[prompt.id]
            text.append(f"{family} ({PREFERRED[family]}): {prompt.text}{' (second turn)' if prompt.after else ''}")
            for kind in ("chosen", "rejected"):
                said = row[kind].replace("\n", "\n    ")
                found = {form: round(score, 2) for form, score in scores(row[kind]).items() if score}
                content = content_of(prompt.text, row[kind], family).factor
                text.append(f"  {kind} {json.dumps(found)} content {content:.2f}:\n    {said}")
            text.append("")
    return "\n".join(text)


def _sampled(
    base: "AlignedModel", prompts: Sequence[Prompt], partial: Path, seed: int, say: Callable[[str], object]
) -> tuple[dict[str, Samples], dict[str, str]]:
    """Samples and own answers, a file for each batch in ``partial``; batches that have theirs are read."""
    alone = answered_alone(prompts)
    todo: dict[str, Callable[[], list[dict[str, Any]]]] = {}
    for part in SAMPLED:
        for index, batch in enumerate(batches(prompts, part)):
            todo[f"{part}_{index}"] = lambda batch=batch: [one.row() for one in sample(base, batch, seed)]
    for index in range(0, len(alone), OWN_TOGETHER):
        batch = alone[index : index + OWN_TOGETHER]
        todo[f"own_{index}"] = lambda batch=batch: [
            {"prompt": text, "answer": answer} for text, answer in own_answers(base, batch).items()
        ]
    samples: dict[str, Samples] = {}
    own: dict[str, str] = {}
    missing = sum(not (partial / f"{name}.jsonl").is_file() for name in todo)
    start, made = time.monotonic(), 0
    for name, make in todo.items():
        file = partial / f"{name}.jsonl"
        if not file.is_file():
            write_jsonl(file, make())
            made += 1
            each = (time.monotonic() - start) / made
            say(f"{name}: {made} of {missing} batches, about {each * (missing - made) / 60:.0f} minutes left")
        rows = [row for _, row in read_jsonl(file, "samples")]
        if name.startswith("own"):
            own |= {row["prompt"]: row["answer"] for row in rows}
        else:
            samples |= {row["id"]: Samples.of(row) for row in rows}
    return samples, own
