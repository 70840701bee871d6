"""What the process of a vLLM engine does: it is asked by `harness.engine.vllm_engine` through a pipe."""

import os
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from harness.engine import vllm_noise, vllm_steering

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of LoRA adapters that vLLM can be started for."""

Asked = tuple[list[tuple[list[int], float, int]], int, list[int], str | None, str | None]
"""(ids, temperature, seed) of each request, most new tokens, ids that end an answer, the folder of the adapter and that
of the artifact that steers, or None."""
Said = tuple[dict[int, list[int]], dict[str, Any] | None]
"""Ids of the answers that ended, by the place of their request, and with the last ones what steering counted."""


@dataclass(frozen=True)
class Launch:
    """What an engine is started with. ``rank``: the largest of the adapters that it can load; 0: none.
    ``layers``: where it can steer; none: nowhere."""

    model: str
    revision: str | None
    dtype: str
    device: str
    max_length: int
    rank: int
    kv_cache_bytes: int
    max_sequences: int
    max_tokens: int | None
    eager: bool
    layers: tuple[int, ...] = ()


def serve(launch: Launch, pipe: Connection) -> None:
    """Answer what comes through ``pipe`` until its other end is closed.

    Says `Said` with no answer when it is ready, then after each step which answers ended; a text where it cannot go on.
    """
    try:
        engine = _engine(launch)
        pipe.send(({}, None))
        while True:
            _answer(engine, pipe, pipe.recv())
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return
    except Exception as problem:  # vLLM, torch and the model's files raise what they like
        traceback.print_exc()
        pipe.send(f"{type(problem).__name__}: {problem}"[:2000])


def _engine(launch: Launch) -> Any:
    from vllm import EngineArgs, LLMEngine  # type: ignore
    from vllm.platforms import current_platform  # type: ignore

    kind = launch.device.partition(":")[0]
    if current_platform.device_type != kind:
        raise ValueError(
            f"the vLLM that is installed is made for {current_platform.device_type}, and execution.device is "
            f"{launch.device}; install the other one, or give that device"
        )
    more: dict[str, Any] = {}
    vllm_noise.install()
    if launch.layers:
        vllm_steering.install(launch.layers)
        # Edited tokens have other keys and values than the same ones elsewhere.
        more = {"enable_prefix_caching": False, "async_scheduling": False}
        os.environ["VLLM_DISABLE_COMPILE_CACHE"] = "1"  # its key does not know at which layers a model is steered
        if kind != "cpu" and not launch.eager:
            more["compilation_config"] = {"cudagraph_mode": "PIECEWISE", "splitting_ops": _splitting()}
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=launch.model,
            revision=launch.revision,
            dtype=launch.dtype,  # type: ignore[arg-type]
            max_model_len=launch.max_length,
            kv_cache_memory_bytes=launch.kv_cache_bytes,
            max_num_seqs=launch.max_sequences,
            max_num_batched_tokens=launch.max_tokens,
            gpu_memory_utilization=0.05,  # looked at before kv_cache_memory_bytes, although that decides
            enforce_eager=launch.eager,
            enable_lora=launch.rank > 0,
            max_lora_rank=launch.rank or 16,  # type: ignore[arg-type]
            skip_tokenizer_init=True,
            trust_remote_code=False,
            disable_log_stats=True,
            **more,
        )
    )


def _splitting() -> list[str]:
    """Where captured graphs end: at vLLM's own places, and where requests are steered, which no graph can hold."""
    from vllm.config import CompilationConfig  # type: ignore

    return [*CompilationConfig._attention_ops, "vllm::unified_kv_cache_update", vllm_steering.OPERATOR]


def _answer(engine: Any, pipe: Connection, asked: Asked) -> None:
    from vllm import SamplingParams  # type: ignore
    from vllm.lora.request import LoRARequest  # type: ignore

    requests, max_new_tokens, stop_ids, adapter, steered = asked
    # Adapters are told apart by their number, which a process gives each folder once.
    lora = None if adapter is None else LoRARequest(adapter, _numbers.setdefault(adapter, len(_numbers) + 1), adapter)
    for place, (ids, temperature, seed) in enumerate(requests):
        how = SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=max_new_tokens,
            stop_token_ids=stop_ids,
            ignore_eos=True,  # one of stop_ids, where the model has it
            detokenize=False,
            extra_args=None if steered is None else {vllm_steering.EXTRA: steered},
        )
        engine.add_request(str(place), {"prompt_token_ids": ids}, how, lora_request=lora)
    while engine.has_unfinished_requests():
        over = [one for one in engine.step() if one.finished]
        last = steered is not None and not engine.has_unfinished_requests()
        tally = engine.collective_rpc(vllm_steering.read_tally, args=(steered,))[0] if last else None
        pipe.send(({int(one.request_id): list(one.outputs[0].token_ids) for one in over}, tally))


_numbers: dict[str, int] = {}
