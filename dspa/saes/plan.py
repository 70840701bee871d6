"""What a training of SAEs is going to do, and a measured guess of what it takes, before it starts."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dspa.saes.activations import ActivationFiles, counted_tokens, forward_batches, residuals
from dspa.saes.corpus import Corpus
from dspa.saes.new import CHECKPOINT_EVERY, KINDS, NewSAE
from dspa.saes.quality import Text, batch_texts
from harness.compute.memory import read_peak
from harness.data.refs import BaseShape
from harness.model.aligned import AlignedModel
from harness.model.sae_training import new_sae, new_trainer

_GB = 1e9


@dataclass(frozen=True)
class TrainSettings:
    """What `train-sae` is asked for. ``latents`` None: four times the width. ``tokens``: training tokens (None: as many
    as the training texts have, once). ``held_out``: share of prompts and documents kept back; of their tokens at most
    ``measure_tokens`` are measured on. ``norm_filter`` 0: leave no token out for its norm."""

    layers: tuple[int, ...]
    kind: str = "batchtopk"
    latents: int | None = None
    k: int | float = 32
    tokens: int | None = None
    batch_size: int = 1024
    lr: float = 6e-4
    seed: int = 0
    norm_filter: int | float = 10.0
    held_out: float = 0.05
    measure_tokens: int = 20_000
    context: int = 512
    save_dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"--layer must name different layers, at least one; got {list(self.layers)}")
        if self.kind not in KINDS:
            raise ValueError(f"--kind {self.kind!r} is not known; allowed: {', '.join(KINDS)}")
        if self.latents is not None and self.latents < 2:
            raise ValueError(f"--latents must be at least 2, got {self.latents}")
        if not self.k > 0 or (self.kind == "topk" and self.k != int(self.k)):
            whole = "a whole number" if self.kind == "topk" else "a number"
            raise ValueError(f"--k must be {whole} of latents above 0, got {self.k:g}")
        if self.batch_size < 2:
            raise ValueError(f"--batch-size {self.batch_size} is too small: it is a number of tokens, at least 2")
        if self.tokens is not None and self.tokens < self.batch_size:
            raise ValueError(f"--tokens {self.tokens} is less than one batch of {self.batch_size}; give more tokens")
        if not self.lr > 0:
            raise ValueError(f"--lr must be above 0, got {self.lr}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"--held-out is a share between 0 and 1, got {self.held_out}")
        if self.measure_tokens < 1:
            raise ValueError(f"--measure-tokens must be at least 1, got {self.measure_tokens}")
        if self.norm_filter != 0 and not self.norm_filter > 1:
            raise ValueError(
                f"--norm-filter is a multiple of the median norm, above 1 (0: leave none out); got {self.norm_filter:g}"
            )
        if self.context < 8:
            raise ValueError(f"--context must be at least 8 tokens, got {self.context}")
        if self.save_dtype not in ("float32", "float16"):
            raise ValueError(f"--save-dtype {self.save_dtype!r} is not known; allowed: float32, float16")

    def width(self, d_model: int) -> int:
        """Latents of each SAE."""
        return 4 * d_model if self.latents is None else self.latents

    def check(self, base: BaseShape) -> None:
        """ValueError for layers that the base does not have, and for more active latents than there are."""
        for layer in self.layers:
            if not 0 <= layer < base.n_layers:
                raise ValueError(
                    f"--layer {layer} is outside base {base.name}, whose layers are 0..{base.n_layers - 1}"
                )
        if self.k > self.width(base.d_model):
            raise ValueError(
                f"--k {self.k:g} is more than the {self.width(base.d_model)} latents of an SAE; give a smaller --k, or "
                "more --latents"
            )


@dataclass(frozen=True)
class Plan:
    """``batches``: forwards over training texts of ``tokens`` counted tokens; ``held_out``: texts measured on."""

    settings: TrainSettings
    sae: NewSAE
    batches: list[list[Text]]
    tokens: int
    held_out: list[Text]
    held_out_tokens: int
    d_model: int
    dtype: torch.dtype

    @classmethod
    def of(cls, base: AlignedModel, corpus: Corpus, settings: TrainSettings) -> "Plan":
        """Deterministic given the seed. Raises ValueError where the text is too little."""
        training, held_out = corpus.split(settings.held_out, settings.seed)
        counts = [counted_tokens(base, text) for text in training]
        total = sum(counts)
        if settings.tokens is not None and settings.tokens < total:
            training = _first(training, counts, settings.tokens, settings.seed)
        steps = (total if settings.tokens is None else settings.tokens) // settings.batch_size
        if total < settings.batch_size:
            raise ValueError(
                f"the training texts have {total} tokens, less than one batch of {settings.batch_size}; give more "
                "--text, or a smaller --batch-size"
            )
        counts = [counted_tokens(base, text) for text in held_out]
        if sum(counts) == 0:
            raise ValueError("there is no held-out text to measure on; give more --text, or a larger --held-out")
        held_out = _first(held_out, counts, settings.measure_tokens, settings.seed)
        d_model = int(base.model.config.get_text_config().hidden_size)  # type: ignore[union-attr]
        sae = NewSAE(
            settings.kind, settings.width(d_model), settings.k, steps, settings.batch_size, settings.lr, settings.seed
        )
        passed, measured = (sum(counted_tokens(base, text) for text in part) for part in (training, held_out))
        return cls(
            settings, sae, forward_batches(training), passed, held_out, measured, d_model, base.model.dtype
        )  # fmt: skip

    def files(self, folder: Path) -> ActivationFiles:
        """Where the activations are kept."""
        return ActivationFiles(folder, self.settings.layers, self.tokens, self.d_model, self.dtype)

    @property
    def first_and_special(self) -> int:
        """First tokens of texts, BOS, EOS and pad among the training texts' tokens: left out. (What a text shares with
        another, which counts it, is not among them.)"""
        texts = [text for batch in self.batches for text in batch]
        return sum(len(text.ids) - (text.start if text.start > 1 else 0) for text in texts) - self.tokens

    @property
    def disk_bytes(self) -> int:
        """Activations, two checkpoints (weights and Adam's two moments), the SAEs themselves; in the state folder."""
        weights = 2 * self.d_model * self.sae.latents * 4
        return self.files(Path()).bytes + 6 * weights + 2 * weights * len(self.settings.layers)

    def lines(self) -> list[str]:
        """What will be done."""
        settings, sae = self.settings, self.sae
        layers = ", ".join(map(str, settings.layers))
        positions = sum(len(text.ids) for batch in self.batches for text in batch)
        texts = sum(map(len, self.batches))
        return [
            f"{sae.kind}: {sae.latents} latents, {sae.k:g} active, for layers {layers}",
            f"{texts} texts of {positions} tokens in {len(self.batches)} forwards; {self.tokens} tokens count "
            f"({self.files(Path()).bytes / _GB:.2f} GB on disk), {self.first_and_special} first and special do not",
            f"{sae.steps} steps of {sae.batch_size} tokens for each layer, "
            f"{sae.steps * sae.batch_size / self.tokens:.2f} times the tokens; checkpoint every {CHECKPOINT_EVERY}",
            f"measured on {self.held_out_tokens} tokens of {len(self.held_out)} held-out texts",
        ]

    def check_disk(self, out: Path) -> None:
        """ValueError where the disk of ``out`` has no room."""
        there = next(parent for parent in out.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(there).free
        if free < self.disk_bytes:
            raise ValueError(
                f"it needs {self.disk_bytes / _GB:.1f} GB beside --out while it runs, and {there} has "
                f"{free / _GB:.1f} GB free; make room, or give fewer --tokens or layers"
            )


def _first(texts: Sequence[Text], counts: Sequence[int], tokens: int, seed: int) -> list[Text]:
    """Texts in an order drawn by the seed until they have ``tokens`` counted tokens, or all."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen, have = [], 0
    for index in order:
        if have >= tokens:
            break
        chosen.append(texts[index])
        have += counts[index]
    return chosen


@dataclass(frozen=True)
class Forecast:
    """Seconds of the three parts, from a sample run here just now, and the memory that the sample took."""

    forward: float
    training: float
    measuring: float
    peak_bytes: int

    @property
    def text(self) -> str:
        parts = f"text {_time(self.forward)}, steps {_time(self.training)}, measuring {_time(self.measuring)}"
        total = _time(self.forward + self.training + self.measuring)
        return f"about {total} ({parts}) and {self.peak_bytes / _GB:.1f} GB of memory: an estimate, from a short sample"


def forecast(base: AlignedModel, plan: Plan) -> Forecast:
    """Run two forwards and two steps, the longest texts first, and scale up; weights and generators stay as they were.

    Rough: a machine's other work, and dead latents, whose auxiliary loss costs as much as a step, are not in it.
    """
    layers = set(plan.settings.layers)
    longest, middle = plan.batches[0], plan.batches[len(plan.batches) // 2]
    residuals(base, layers, longest)  # warms up, and takes the most memory
    x = residuals(base, layers, middle)[max(layers)]
    seconds = _seconds(lambda: residuals(base, layers, middle))
    size = sum(len(text.ids) for text in middle)
    positions = sum(len(text.ids) for batch in plan.batches for text in batch)
    with torch.random.fork_rng(devices=[]):
        sae = new_sae(plan.sae.kind, d_in=plan.d_model, d_sae=plan.sae.latents, metadata={}, **plan.sae.options)
    sae.to(str(base.device))
    trainer = new_trainer(sae, iter(()), steps=4, batch_size=plan.sae.batch_size, lr=plan.sae.lr)
    trainer.activation_scaler.scaling_factor = 1.0
    batch = x.float().repeat(-(-plan.sae.batch_size // max(1, len(x))), 1)[: plan.sae.batch_size]
    trainer.step(batch)
    step = _seconds(lambda: trainer.step(batch)) * plan.sae.steps * len(layers)
    held = sorted(plan.held_out, key=lambda text: len(text.ids))
    one = held[len(held) // 2]
    whole = _seconds(lambda: _whole(base, one)) / len(one.ids)
    # The base itself, zeros and the reconstruction, for each layer.
    measuring = 3 * len(layers) * whole * sum(len(text.ids) for text in plan.held_out)
    peak = read_peak()
    return Forecast(seconds * positions / size, step, measuring, peak.host if peak.cuda is None else peak.cuda)


@torch.no_grad()
def _whole(base: AlignedModel, text: Text) -> None:
    (batch,) = batch_texts(base, [text], 1)
    base.model(**batch.inputs, use_cache=False)


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
