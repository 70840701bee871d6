"""`dspa-bench perf engine`: answers a second by transformers and by vLLM, steered and not, on the same prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dspa.method import DSPA
from dspa.perf.subject import Given, PerfOptions
from harness.compute import Meter
from harness.data.refs import model_ref
from harness.data.triples import Conversation, Message
from harness.engine.served import Served
from harness.engine.vllm_engine import VLLM, VLLMAtWork
from harness.model.aligned import AlignedModel
from harness.model.chat import ChatFormat
from harness.model.dequantised import source_of
from harness.speed.report import Figure, Section

TRANSFORMERS, TRANSFORMERS_DSPA = "transformers", "transformers, DSPA"
VLLM_PLAIN, ONE_SET, OWN_SETS = "vLLM", "vLLM, one set for all", "vLLM, a set per request (DSPA)"
_GOAL = 0.9
_FIT = 40  # triples


class _Endless(ChatFormat):
    """Nothing ends an answer but its length, so that all candidates make as many tokens."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """A token that models hardly ever say."""
        usual = {*self.special_ids, *ChatFormat.stop_ids.func(self)}
        rare = [one for one in self.tokenizer.all_special_ids if one not in usual]
        return (rare[-1] if rare else len(self.tokenizer) - 1,)


@dataclass(frozen=True)
class EngineOptions(PerfOptions):
    """``batches``: prompts that are asked together; ``tokens``: length of each answer; ``threads``: of each side;
    ``compiled``: vLLM compiles the model (with captured graphs on a GPU)."""

    batches: tuple[int, ...] = (1, 8, 64)
    tokens: int = 64
    threads: int = 1
    compiled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.subject, Given):
            raise ValueError(
                "perf engine needs a model that vLLM can read; give --base, --input-sae, --output-sae, --texts"
            )
        if not self.batches or min(self.batches) < 1 or self.tokens < 1:
            raise ValueError(f"batches and tokens must be at least 1, got {self.batches} and {self.tokens}")


def measure_engine(options: EngineOptions, *, tell: Callable[[str], object] = print) -> list[Section]:
    """One section a batch; ``tell`` is called with what is being done."""
    assert isinstance(options.subject, Given)
    plain = source_of(model_ref(options.subject.base, "auto"))
    options = replace(options, subject=replace(options.subject, base=plain))
    engine = VLLM(kv_cache_gib=2.0, max_sequences=max(options.batches), eager=not options.compiled)
    ref = model_ref(plain, "auto")
    engine.check(ref)
    work = options.opened(_FIT + max(options.batches))
    triples = work.triples(_FIT)
    prompts = [triple.prompt for triple in work.triples(max(options.batches))]
    tell(work.model)
    with TemporaryDirectory() as folder, ExitStack() as ending:
        (saes,) = work.saes(Path(folder))
        tell(f"SAEs: {saes.about}; fit on {len(triples)} triples")
        endless = _Endless(work.base.base.tokenizer, work.base.chat.kind)
        made: dict[str, AlignedModel] = {}
        for name, scores in ((ONE_SET, "mean"), (OWN_SETS, "rows")):
            method = DSPA(input_sae=saes.input, output_sae=saes.output, scores=scores, batch_size=8)
            made[name] = method.fit(work.base, triples, meter=Meter(work.base.model), seed=0)
            made[name].save(Path(folder) / scores)

        def started() -> VLLMAtWork:
            found = engine.start(ref, device=options.device, threads=options.threads)
            ending.callback(found.end)
            return found

        def unending(aligned: AlignedModel) -> AlignedModel:
            return aligned.derive(base=replace(aligned.base, chat=endless))

        base = unending(work.base)
        models: dict[str, Any] = {
            TRANSFORMERS: base,
            TRANSFORMERS_DSPA: unending(made[OWN_SETS]),
            VLLM_PLAIN: _served(base, started(), Path(folder)),
            # Processes of their own: one has a single artifact's SAEs in memory at a time.
            ONE_SET: _served(unending(made[ONE_SET]), started(), Path(folder) / "mean"),
            OWN_SETS: _served(unending(made[OWN_SETS]), started(), Path(folder) / "rows"),
        }
        facts = {"model": work.model, "engine": engine.label + (", compiled" if options.compiled else ", eager")}
        sections = []
        for batch in options.batches:
            sections.append(_section(models, prompts[:batch], options, facts))
            tell(sections[-1].markdown() + "\n")
        return sections


def _served(aligned: AlignedModel, engine: VLLMAtWork, artifact: Path) -> Served:
    return Served.of(aligned, engine, artifact, artifact.name)


def _section(
    models: dict[str, Any], prompts: Sequence[Conversation], options: EngineOptions, facts: dict[str, str]
) -> Section:
    n_tokens = len(prompts) * options.tokens
    candidates = {name: _Asking(model, prompts, options.tokens).opened for name, model in models.items()}
    comparison = options.compare(candidates, VLLM_PLAIN)
    section = Section(f"{len(prompts)} prompts at once")
    section.facts = facts | {
        "prompts": f"{sum(len(models[TRANSFORMERS].prompt_ids(one)) for one in prompts) / len(prompts):.0f} tokens in "
        f"the mean, answers of {options.tokens}, greedy; each time with another number in front",
        "rounds": f"{options.rounds}, interleaved in random order, {options.threads} threads",
    }
    section.add(comparison, comparison.control, VLLM_PLAIN)
    for name in (OWN_SETS, ONE_SET):
        section.add(comparison, name, VLLM_PLAIN, _GOAL if name == OWN_SETS else None)
    section.add(comparison, OWN_SETS, ONE_SET)
    section.add(comparison, TRANSFORMERS_DSPA, TRANSFORMERS)
    section.add(comparison, VLLM_PLAIN, TRANSFORMERS)
    section.add(comparison, OWN_SETS, TRANSFORMERS_DSPA)
    for name in models:
        section.figures.append(Figure(name, n_tokens / comparison.median_seconds(name), "tokens/s"))
    return section


@dataclass
class _Asking:
    """Asks ``model``, in each round with another number in front of the prompts: no cache has seen them."""

    model: Any
    prompts: Sequence[Conversation]
    tokens: int
    round: int = 0

    @contextmanager
    def opened(self) -> Iterator[Callable[[], object]]:
        self.round += 1
        asked = [_numbered(one, self.round) for one in self.prompts]
        yield partial(self._answer, asked)

    def _answer(self, asked: list[Conversation]) -> None:
        found = [
            one
            for batch in self.model.generate_batches(asked, max_new_tokens=self.tokens, batch_size=len(asked))
            for one in batch.completions
        ]
        short = [one for one in found if len(one.token_ids) != self.tokens]
        if short or len(found) != len(asked):
            raise RuntimeError(f"{len(short)} answers ended early, so that candidates do not make as many tokens")


def _numbered(conversation: Conversation, number: int) -> Conversation:
    first, *rest = conversation
    return (Message(role=first["role"], content=f"({number}) {first['content']}"), *rest)
