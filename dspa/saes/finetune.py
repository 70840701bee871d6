"""Fine-tuning of a released SAE on the base model's activations over preference text, by SAELens' own trainer.

The latents keep their indices and L0 is held (see dspa.saes.training), so that what is known of a latent, and an
explanation of it, stays with it; what changes is how well the SAE describes this model on this text.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from sae_lens.training.mixing_buffer import mixing_buffer
from torch import Tensor

from dspa.saes.quality import Quality, Text, batch_texts, measure_quality, reconstruct, texts_of
from dspa.saes.sae import ResidualSAE, check_sae, load_sae
from dspa.saes.training import Units, calibrate, check_trainable, to_released, to_training, train
from harness.data.refs import SAERef, model_ref
from harness.data.triples import Triple, load_triples, split_by_prompt, triples_hash
from harness.experiment.check import check_base
from harness.files import atomic_folder, check_can_make
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from harness.model.residuals import early_residuals
from harness.provenance import code_commit
from harness.quiet import without_progress_bars

BUFFER_TOKENS = 32_768
SAMPLE_TOKENS = 16_384
ROWS = 8
_L0_TOLERANCE = 0.05


@dataclass(frozen=True)
class FinetuneSettings:
    """``tokens``: training tokens, rounded down to whole batches (None: as many as the training texts have, once).
    ``batch_size``: tokens a step. ``held_out``: share of the prompts kept back for the measurements."""

    tokens: int | None = None
    lr: float = 1e-4
    batch_size: int = 1024
    seed: int = 0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch size {self.batch_size} is too small: it is a number of tokens, at least 2")
        if self.tokens is not None and self.tokens < self.batch_size:
            raise ValueError(f"{self.tokens} tokens are less than one batch of {self.batch_size}; give more tokens")
        if self.lr <= 0:
            raise ValueError(f"the learning rate must be above 0, got {self.lr}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"the held-out share must be between 0 and 1, got {self.held_out}")


@dataclass(frozen=True)
class Finetuned:
    """The fine-tuned SAE, its quality on held-out text beside the original's, and where it comes from."""

    sae: ResidualSAE
    before: Quality
    after: Quality
    provenance: dict[str, Any]


def finetune(
    base: AlignedModel, sae: ResidualSAE, triples: Sequence[Triple], settings: FinetuneSettings, *, source: str
) -> Finetuned:
    """Continue the training of ``sae`` (called ``source`` in the provenance) on ``base`` over the triples' texts.

    Deterministic given the seed. Raises ValueError for an SAE that cannot be trained on and for too few triples.
    """
    check_trainable(sae)
    kept, held_out = split_by_prompt(triples, settings.held_out, settings.seed)
    if not kept or not held_out:
        raise ValueError(
            f"{len(triples)} triples leave {len(kept)} to train on and {len(held_out)} to measure on; give more "
            "prompts or another held-out share"
        )
    training_texts, held_out_texts = texts_of(base, kept), texts_of(base, held_out)
    stream = _Stream(base, sae, training_texts, settings.seed)
    steps = (stream.total if settings.tokens is None else settings.tokens) // settings.batch_size
    if steps == 0:
        raise ValueError(
            f"the training texts have {stream.total} tokens, less than one batch of {settings.batch_size}; give more "
            "triples, or a smaller batch size"
        )
    tuned = continue_training(sae, stream.sample, stream.batches(settings.batch_size), steps=steps, settings=settings)
    before, after = measure_quality(base, [sae, tuned], held_out_texts, limit=stream.limit, rows=ROWS)
    provenance = {
        "source": source,
        "source_identity": hashlib.sha256(sae.identity.encode()).hexdigest(),
        "base": base.base.identity,
        "triples_hash": triples_hash(kept),
        "held_out_hash": triples_hash(held_out),
        "triples": len(kept),
        "held_out_triples": len(held_out),
        "norm_filter": sae.norm_multiple,
        **asdict(settings),
        "tokens": steps * settings.batch_size,
        "steps": steps,
        "code": code_commit(),
    }
    metadata = tuned.sae.cfg.metadata
    known = vars(metadata)
    # A dashboard of the original's activations and its count of dead latents no longer describe this SAE.
    origin = {"neuronpedia_id": known.pop("neuronpedia_id")} if known.get("neuronpedia_id") else {}
    known.pop("num_dead_features", None)
    metadata.l0, metadata.finetuned = after.l0, provenance | origin
    if sae.norm_multiple is not None:
        metadata.norm_filter = sae.norm_multiple
    return Finetuned(tuned, before, after, provenance)


def continue_training(
    sae: ResidualSAE,
    sample: Float[Tensor, "token d_model"],
    batches: Iterator[Float[Tensor, "batch d_model"]],
    *,
    steps: int,
    settings: FinetuneSettings,
) -> ResidualSAE:
    """A new SAE after ``steps`` steps on ``batches``, its L0 on ``sample`` as before; no step changes no bit."""
    with torch.random.fork_rng(devices=[]):  # SAELens shuffles, and makes initial weights, by the global generator
        torch.manual_seed(settings.seed)
        units = Units.of(sae, sample)
        training = to_training(sae, units)
        if steps:
            active = int(reconstruct(sae, sample)[1].sum())
            train(
                training,
                (batch * units.data for batch in batches),
                target_l0=active / len(sample),
                steps=steps,
                batch_size=settings.batch_size,
                lr=settings.lr,
            )
            calibrate(training, sample * units.data, active)
        return to_released(training, units, sae)


def stream_tokens(
    base: AlignedModel, layer: int, texts: Sequence[Text], *, rows: int
) -> Iterator[Float[Tensor, "token d_model"]]:
    """Residual stream (fp32) after ``layer`` at the counted tokens of ``rows`` texts at a time, in order.

    The forward stops after ``layer``: what comes later, and the LM head, never run.
    """
    decoder = find_decoder(base.model)
    for batch in batch_texts(base, texts, rows):
        with torch.no_grad():
            residual = early_residuals(decoder, {layer}, batch.ids, batch.mask)[layer]
        yield residual[batch.counted].float()


class _Stream:
    """Training tokens: a sample to set scale, norm limit and L0 by, then shuffled batches without end."""

    def __init__(self, base: AlignedModel, sae: ResidualSAE, texts: Sequence[Text], seed: int) -> None:
        self._base, self._sae, self._texts, self._seed = base, sae, texts, seed
        special = set(base.chat.special_ids)
        self.total = sum(sum(i not in special for i in text.ids[text.start :]) for text in texts)
        parts: list[Tensor] = []
        for part in self._tokens(seed):
            parts.append(part)
            if sum(map(len, parts)) >= min(SAMPLE_TOKENS, self.total):
                break
        sample = torch.cat(parts)
        self.limit = None if sae.norm_multiple is None else float(sae.norm_multiple * sample.norm(dim=-1).median())
        self.sample = sample[sae.fits_norm(sample, self.limit)]

    def batches(self, batch_size: int) -> Iterator[Float[Tensor, "batch d_model"]]:
        """SAELens' mixing buffer over the stream; its order is fixed by torch's global generator."""
        fitting = (part[self._sae.fits_norm(part, self.limit)] for part in self._tokens(self._seed + 1))
        return mixing_buffer(max(min(BUFFER_TOKENS, self.total), 2 * batch_size), batch_size, fitting)

    def _tokens(self, seed: int) -> Iterator[Float[Tensor, "token d_model"]]:
        """`stream_tokens` over and over, the texts in a new order each time (fixed by ``seed``)."""
        draw = random.Random(seed)
        while True:
            texts = draw.sample(self._texts, len(self._texts))
            yield from stream_tokens(self._base, self._sae.layer, texts, rows=ROWS)


def save_finetuned(result: Finetuned, path: str | Path) -> None:
    """A SAELens folder with report.json beside the weights, complete or not at all; ValueError when it exists."""
    with atomic_folder(path) as folder:
        result.sae.sae.save_model(folder)
        report = {"before": result.before.to_dict(), "after": result.after.to_dict(), "provenance": result.provenance}
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def finetune_sae_command(
    sae_path: Path | None,
    base: str,
    triples_path: Path,
    out: Path,
    settings: FinetuneSettings,
    *,
    release: str | None,
    sae_id: str | None,
    norm_filter: float | None,
    chat: str,
    device: str,
) -> None:
    """The body of `finetune-sae`: fine-tune an SAE, save it and print its quality before and after."""
    without_progress_bars()
    if (sae_path is None) == (release is None) or (release is None) != (sae_id is None):
        raise ValueError("give either --sae FOLDER, or both --release and --id")
    if norm_filter is not None and norm_filter <= 1:
        raise ValueError(f"--norm-filter is a multiple of the median norm, above 1; got {norm_filter}")
    if out.exists():
        raise ValueError(f"--out {str(out)!r} exists already; SAEs are never overwritten")
    check_can_make(out)
    path = None if sae_path is None else str(sae_path)
    ref = SAERef(path=path, release=release, id=sae_id, norm_filter=norm_filter)
    model = model_ref(base, chat)
    triples = load_triples(triples_path)
    check_sae(ref, check_base(model))
    sae = load_sae(ref, device)
    check_trainable(sae)
    result = finetune(AlignedModel.from_base(model, device=device), sae, triples, settings, source=str(ref.located()))
    save_finetuned(result, out)
    _print_quality(result, out)


def _print_quality(result: Finetuned, out: Path) -> None:
    before, after, made = result.before, result.after, result.provenance
    table = Table("held-out text", "before", "after")
    table.add_row("L0", f"{before.l0:.2f}", f"{after.l0:.2f}")
    table.add_row("explained variance", f"{before.explained_variance:.4f}", f"{after.explained_variance:.4f}")
    table.add_row("loss with the reconstruction", f"{before.loss_sae:.4f}", f"{after.loss_sae:.4f}")
    table.add_row("loss recovered", f"{before.loss_recovered:.4f}", f"{after.loss_recovered:.4f}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"{before.tokens} tokens of {made['held_out_triples']} triples; loss of the base itself {before.loss:.4f}, "
        f"with zeros {before.loss_zero:.4f}"
    )
    change = after.l0 / before.l0 - 1
    if abs(change) > _L0_TOLERANCE:
        console.print(f"L0 was not held: {change:+.1%} on held-out text; try a lower --lr or fewer --tokens")
    if made["norm_filter"] is not None:
        console.print(f"its training left out tokens above {made['norm_filter']:g} x the median norm, as it records")
    console.print(f"{out}: {made['tokens']} tokens of {made['triples']} triples in {made['steps']} steps")
