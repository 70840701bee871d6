"""Builds the whole sandbox from seeds: tokenizer, base model, SAEs, data files, manifest."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from harness.data.triples import conversation
from harness.files import atomic_folder, folder_hash
from tasks.sandbox.world import FAMILIES, FIRST, GENERATOR_VERSION, REFUSE, REGISTERS, World

if TYPE_CHECKING:
    from harness.model.aligned import AlignedModel

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Sizes:
    """How much is generated and trained; the committed assets have the defaults."""

    corpus: int = 13_000
    sae_documents: int = 5_000
    held_out: int = 400
    epochs: int = 2
    sae_steps: int = 1200
    d_sae: int = 512
    sampled_answers: int = 400


def build(out_dir: Path, seed: int | None = None, sizes: Sizes | None = None, world: World = FIRST) -> None:
    """Write a world's sandbox into ``out_dir``, replacing it as a whole when everything is done.

    Without a ``seed``, the world's own. Runs on one thread, so the same seed and library versions give the same files
    on one machine. Raises ValueError when ``out_dir`` exists and is not a sandbox (has no manifest.json).
    """
    out_dir, sizes = Path(out_dir), sizes or Sizes()
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / "manifest.json").is_file():
        raise ValueError(
            f"{out_dir} exists and is not a sandbox (no manifest.json); name a new folder or one a build made"
        )
    with atomic_folder(out_dir, replace=True) as folder, one_thread():
        _make(folder, world.seed if seed is None else seed, sizes, world)


def _make(folder: Path, seed: int, sizes: Sizes, world: World) -> None:
    from tasks.sandbox import corpus, model, questions, saes

    questions.write_data(folder, seed, world)
    tokenizer = model.build_tokenizer()
    documents = corpus.training_corpus(seed, sizes.corpus, world)
    base = model.train_model(documents, tokenizer, seed, sizes.epochs)
    base.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, site in saes.SITES.items():
        data = saes.activations(base, tokenizer, documents[: sizes.sae_documents], site.layer)
        saes.train_sae(data, site, folder / name, seed=seed, d_sae=sizes.d_sae, steps=sizes.sae_steps)
    manifest = {
        "generator_version": GENERATOR_VERSION,
        "world": world.name,
        "base": folder_hash(folder / "model"),
        "seed": seed,
        "sizes": asdict(sizes),
        "corpus": {
            "documents": len(documents),
            "tokens": sum(len(model.encode_document(tokenizer, d)[0]) for d in documents),
            "sha256": corpus.corpus_hash(documents),
        },
        "parameters": sum(p.numel() for p in base.parameters()),
        "figures": measure(folder, seed, sizes, world),
        "versions": {name: version(name) for name in ("torch", "transformers", "sae_lens")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, seed: int, sizes: Sizes, world: World = FIRST) -> dict[str, Any]:
    """Evaluation figures of the weights in ``folder``: what the manifest states and a test recomputes.

    ``loss``: nats per token on held-out texts. ``sandbox_facts``, ``sandbox_scenes``: multiple-choice
    accuracy (summed log-likelihoods). ``registers``: family -> share of marker words per register in answers
    sampled at temperature 1. ``content``: mean share of true clauses in them (without unsafe requests, where
    complying is not content). ``sae_*``: L0, explained variance and dead share on held-out texts.
    """
    from harness.data.refs import ModelRef
    from harness.model.aligned import AlignedModel
    from tasks.sandbox import corpus, model, questions, saes

    base = AlignedModel.from_base(ModelRef.model_validate({"path": str(folder / "model")}))
    rng = Random(f"held out:{seed}")
    held_out = [corpus.document(rng, world) for _ in range(sizes.held_out)]
    figures: dict[str, Any] = {"loss": model.corpus_loss(base.model, base.tokenizer, held_out)}
    for task in ("sandbox_facts", "sandbox_scenes"):
        figures[task] = _choice_accuracy(base, questions.read_lines(folder / "lm_eval" / f"{task}.jsonl"))
    figures |= _speech(base, seed, sizes)
    for name, site in saes.SITES.items():
        data = saes.activations(base.model, base.tokenizer, held_out, site.layer)
        figures[name] = saes.sae_figures(folder / name, data)
    return figures


def _choice_accuracy(base: "AlignedModel", items: list[dict[str, Any]]) -> float:
    """Share of items whose right choice has the highest summed log-likelihood after the query."""
    pairs = [(item["query"], f" {choice}") for item in items for choice in item["choices"]]
    scores = iter(base.loglikelihood(pairs))
    right = 0
    for item in items:
        likelihoods = [next(scores)[0] for _ in item["choices"]]
        right += likelihoods.index(max(likelihoods)) == item["gold"]
    return right / len(items)


def _speech(base: "AlignedModel", seed: int, sizes: Sizes) -> dict[str, Any]:
    """Register shares and content of sampled answers to evaluation prompts, equally many per family."""
    from tasks.sandbox import corpus, oracle
    from tasks.sandbox.grammar import TOPICS_OF

    rng = Random(f"speech:{seed}")
    asked = [
        corpus.prompt_for(rng, rng.choice(TOPICS_OF[family]), "evaluation")
        for family in FAMILIES
        for _ in range(sizes.sampled_answers // len(FAMILIES))
    ]
    answers = base.generate([conversation(text) for _, text in asked], max_new_tokens=64, temperature=1.0, seed=seed)
    readings = [(q, oracle.read_answer(q, answer.text)) for (q, _), answer in zip(asked, answers, strict=True)]
    registers = {}
    for family in FAMILIES:
        markers = sum((reading.markers for q, reading in readings if q.family == family), Counter())
        registers[family] = {r: markers[r] / max(markers.total(), 1) for r in (*REGISTERS, REFUSE)}
    content = [reading.content for request, reading in readings if request.family != "unsafe"]
    return {"registers": registers, "content": sum(content) / len(content)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in another order give other weights, so the thread count must not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
