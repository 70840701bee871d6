"""What vLLM loads in each process of its server: a request that names a steered model gets that model's artifact.

It finds `register` by the entry point ``vllm.general_plugins``. What is to be done stands in the environment, where
`harness.engine.vllm_serving` puts it; a vLLM that was started otherwise is left as it is.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

SERVED = "DSPA_BENCH_SERVED"
"""The environment variable with a JSON object: ``steered`` maps names of models to folders of the artifacts that steer
them at ``layers``, ``plain`` lists those of them without weights of their own, ``stop`` the tokens that end an answer
of any model, of which vLLM knows EOS alone."""


def register() -> None:
    """Have this vLLM process do what the environment says; nothing where it says nothing."""
    if SERVED not in os.environ:
        return
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # type: ignore
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # type: ignore
    from vllm.entrypoints.openai.models.protocol import BaseModelPath  # type: ignore
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels  # type: ignore
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest  # type: ignore

    from harness.engine import vllm_noise, vllm_steering

    served = json.loads(os.environ[SERVED])
    vllm_noise.install()
    if served["steered"]:
        vllm_steering.install(served["layers"], serving=True)
    for kind in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        _mend(kind, served["steered"], served["stop"])
    begin = OpenAIServingModels.__init__

    def __init__(self: Any, engine_client: Any, base_model_paths: list[Any], **more: Any) -> None:
        # Here and not by --served-model-name: a vLLM that did not load this would answer to the names, unsteered.
        path = base_model_paths[0].model_path
        base_model_paths += [BaseModelPath(name=name, model_path=path) for name in served["plain"]]
        begin(self, engine_client, base_model_paths, **more)

    OpenAIServingModels.__init__ = __init__


def _mend(kind: Any, steered: Mapping[str, str], stop: Sequence[int]) -> None:
    """Have requests of this kind name the artifact of their model, nobody name another, and answers end."""
    from harness.engine.vllm_steering import EXTRA

    sampled, searched = kind.to_sampling_params, getattr(kind, "to_beam_search_params", None)

    def to_sampling_params(self: Any, *args: Any, **more: Any) -> Any:
        found = sampled(self, *args, **more)
        if EXTRA in (found.extra_args or {}):
            raise ValueError(f"{EXTRA!r} is not for a request to set; name a model")
        if self.model in steered:
            found.extra_args = {**(found.extra_args or {}), EXTRA: steered[self.model]}
        found.stop_token_ids = [*(found.stop_token_ids or ()), *stop]
        found.all_stop_token_ids.update(stop)
        return found

    def to_beam_search_params(self: Any, *args: Any, **more: Any) -> Any:
        if self.model in steered:
            raise ValueError(f"{self.model} steers, which beam search cannot; leave it out")
        assert searched is not None
        return searched(self, *args, **more)

    kind.to_sampling_params = to_sampling_params
    if searched is not None:
        kind.to_beam_search_params = to_beam_search_params
