"""What the measurements run on: a model that is made up, or one that is given with its SAEs and texts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from dspa.method import DSPA
from dspa.perf.synthetic import SHAPES, Lengths, SAEPair, Writer, make_base, make_saes
from dspa.saes.sae import sae_sizes
from harness.data.refs import SAERef, model_ref
from harness.data.triples import Triple, distinct, draw_budget, load_triples
from harness.experiment.check import check_base
from harness.files import content_hash
from harness.model.aligned import AlignedModel
from harness.speed.compare import Candidate, Comparison, compare

_CALIBRATION = 24  # made-up triples on which made-up SAEs are calibrated
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Workload:
    """A model, the pairs of SAEs to measure it with (written below a folder where they are made up), and texts."""

    base: AlignedModel
    model: str
    """What it is, for the report."""
    saes: Callable[[Path], Iterator[SAEPair]]
    triples: Callable[[int], list[Triple]]
    """The next so many."""
    continuation: Callable[[Triple, int], list[int]]
    """So many token ids to be decoded after a triple's prompt."""


@dataclass(frozen=True)
class MadeUp:
    """A random model and random texts. ``ratio``: sizes of one SAE (encoder and decoder) relative to the model;
    ``prompt_tokens`` and ``answer_tokens`` are medians."""

    shape: str = "quarter-gemma-2-2b"
    ratio: tuple[float, ...] = (0.03, 0.13)
    prompt_tokens: int = Lengths.prompt
    answer_tokens: int = Lengths.answer

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"unknown model shape {self.shape!r}; known: {', '.join(SHAPES)}")
        if not self.ratio or min(self.ratio) <= 0:
            raise ValueError(f"SAE/model size ratios must be positive, got {self.ratio}")
        if min(self.prompt_tokens, self.answer_tokens) < 1:
            raise ValueError("lengths in tokens must be at least 1")

    def opened(self, n_triples: int, *, dtype: Dtype, device: str, seed: int) -> Workload:
        """As many triples as anybody wants."""
        shape = SHAPES[self.shape]
        base = make_base(shape, dtype=dtype, device=device, seed=seed)
        writer = Writer(base, seed=seed)
        lengths = Lengths(self.prompt_tokens, self.answer_tokens)
        calibration = writer.triples(_CALIBRATION, lengths)

        def saes(folder: Path) -> Iterator[SAEPair]:
            for number, ratio in enumerate(self.ratio):
                place = folder / str(number)
                yield make_saes(base, shape.layers, calibration, place, ratio=ratio, seed=seed)

        return Workload(
            base,
            f"{self.shape}, random weights and texts, {_size(base)}, {dtype}",
            saes,
            lambda n: writer.triples(n, lengths),
            lambda _triple, n: base.chat.response_ids(writer.continuation(n)),
        )


MADE_UP = MadeUp()


@dataclass(frozen=True)
class Given:
    """A base model (folder, GGUF file or Hugging Face id), SAELens folders at l_in and l_out, and a triples file."""

    base: str
    input_sae: str
    output_sae: str
    texts: str

    def opened(self, n_triples: int, *, dtype: Dtype, device: str, seed: int) -> Workload:
        """``n_triples`` are drawn by ``seed``, all with different prompts; an answer is decoded again and again.

        Raises ValueError before the model is loaded for files that are no such thing, SAEs that do not fit the model,
        and too few prompts.
        """
        ref = model_ref(self.base, "auto").model_copy(update={"dtype": dtype})
        refs = [SAERef.model_validate({"path": path}) for path in (self.input_sae, self.output_sae)]
        DSPA(input_sae=refs[0], output_sae=refs[1]).check(check_base(ref))
        triples = load_triples(self.texts)
        drawn = draw_budget(triples, len(distinct(triples)), seed).triples
        one_a_prompt = list({str(triple.prompt): triple for triple in drawn}.values())
        if len(one_a_prompt) < n_triples:
            raise ValueError(
                f"--texts {self.texts!r} has {len(one_a_prompt)} different prompts, but {n_triples} are needed; "
                "give a larger file, or measure on fewer triples or rows"
            )
        left = iter(one_a_prompt)
        base = AlignedModel.from_base(ref, device=device)
        (layer, width, d_sae), (last, _, _) = map(sae_sizes, refs)
        where = f"layer {layer}: {_identified(self.input_sae)}; layer {last}: {_identified(self.output_sae)}"
        pair = SAEPair(
            *refs, always=None, d_sae=d_sae, size_ratio=2 * d_sae * width / n_parameters(base.model), about=where
        )
        return Workload(
            base,
            f"{self.base}, identity {base.base.identity[:12]}, {_size(base)}, {dtype}; texts {_identified(self.texts)}",
            lambda _folder: iter([pair]),
            lambda n: list(islice(left, n)),
            lambda triple, n: list(islice(cycle(base.chat.response_ids(triple.chosen)), n)),
        )


def _size(base: AlignedModel) -> str:
    return f"{n_parameters(base.model) / 1e6:.0f}M parameters"


def _identified(path: str) -> str:
    return f"{path} ({content_hash(path)[:12]})"


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def subject_of(
    default: MadeUp,
    *,
    made_up: Mapping[str, Any],
    given: Mapping[str, str | None],
    beside: Mapping[str, Any] | None = None,
) -> MadeUp | Given:
    """What options of a command line describe, each None where it was left out.

    ``made_up`` replaces fields of ``default``, ``given`` are the fields of `Given`; ``beside`` are further options
    that a given model has no use for. Raises ValueError for options of both kinds, and for a part of ``given``.
    """
    asked = {name: value for name, value in made_up.items() if value is not None}
    wanted = {name: value for name, value in given.items() if value is not None}
    useless = [*asked, *(name for name, value in (beside or {}).items() if value is not None)]
    if wanted and useless:
        raise ValueError(
            f"{_options(useless)}: only for a made-up model; leave out that, or what names a given one "
            f"({_options(wanted)})"
        )
    if wanted and len(wanted) < len(given):
        raise ValueError(f"{_options(given)} go together; missing: {_options(n for n in given if n not in wanted)}")
    return Given(**wanted) if wanted else replace(default, **asked)


def _options(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


@dataclass(frozen=True)
class PerfOptions:
    """Common to `perf steering` and `perf fit`."""

    subject: MadeUp | Given = MADE_UP
    rounds: int = 30
    warmup: int = 1
    dtype: Dtype = "float32"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {', '.join(get_args(Dtype))}")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} is not there: torch sees no CUDA device; use cpu")

    def opened(self, n_triples: int) -> Workload:
        """The subject, with at least ``n_triples`` triples."""
        return self.subject.opened(n_triples, dtype=self.dtype, device=self.device, seed=self.seed)

    def compare(self, candidates: Mapping[str, Candidate], reference: str, **more: Any) -> Comparison:
        """`harness.speed.compare.compare` with these rounds and seed."""
        return compare(candidates, reference=reference, rounds=self.rounds, warmup=self.warmup, seed=self.seed, **more)
