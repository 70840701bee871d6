"""openai: any server with OpenAI's chat API, such as `vllm serve`, for a base model and what was trained."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from harness.data.refs import ModelRef
from harness.engine.engine import Answers, EngineConfig, Network, Request, register_engine
from harness.judging.chat_endpoint import ChatEndpoint, RequestHooks
from harness.judging.prompted import Reply
from harness.model.chat import ChatFormat
from harness.model.dequantised import source_of
from harness.model.pretrained import read_tokenizer
from harness.pulse import beat
from harness.responder import Completion

OURS = ("model", "messages", "temperature", "seed", "top_p", "max_tokens", "max_completion_tokens", "n", "stream")
"""Fields of a request that are not for ``extra`` to set."""


@register_engine("openai")
class OpenAIServer(EngineConfig):
    """A server at ``base_url`` that knows the base model as ``model`` and each trained cell by the cell's name.

    What has no weights of its own (base, prompt) is asked as ``model``. A trained cell is asked by its own name, such
    as dpo__n300__s0, under which its artifact's ``adapter`` or ``weights`` must be served; until it is, the cell's
    benchmarks fail and say so, and the same command goes on with them. Nothing can tell that the server's weights are
    the suite's; that its chat template and tokenizer are is seen from the number of prompt tokens it counts, and an
    answer to another number is refused. The key is read from the environment and kept nowhere.
    """

    operational: ClassVar[frozenset[str]] = frozenset({"base_url", "api_key_env", "concurrency", "attempts", "timeout"})

    base_url: str = Field(description="address of the API, e.g. http://localhost:8000/v1; where it is may change")
    model: str = Field(description="the name that the server knows the base model by")
    api_key_env: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key")
    extra: dict[str, Any] = Field(
        {},
        description="further fields of each request, such as {top_k: -1, repetition_penalty: 1.0} where the server "
        "takes others from the model's generation_config.json",
    )
    concurrency: PositiveInt = Field(64, description="requests that are open at once, in each process")
    attempts: PositiveInt = Field(6, description="how often a request is sent before it is given up")
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(600.0, description="seconds for one attempt")

    @property
    def label(self) -> str:
        return f"{self.model} at an OpenAI-compatible server"

    def check(self, base: ModelRef) -> None:
        """Also refuses a base without a chat template: a server would write conversations in another form."""
        if taken := sorted(self.extra.keys() & set(OURS)):
            raise ValueError(f"extra: {', '.join(taken)} is for the benchmark to say; leave it out")
        self.endpoint(self.model, 1).check_key()
        if ChatFormat.of(read_tokenizer(source_of(base), revision=base.revision), base.chat).kind != "tokenizer":
            raise ValueError(
                "engine 'openai' needs a base model with a chat template, which the server then uses; this one is "
                "written in the hh form"
            )

    def start(self, base: ModelRef, *, device: str, threads: int) -> "ServerAtWork":
        return ServerAtWork(self)

    def endpoint(self, model: str, max_new_tokens: int) -> ChatEndpoint:
        """The client, for answers of at most so many tokens."""
        how = self.model_dump(include={"base_url", "api_key_env", "concurrency", "attempts", "timeout"})
        return ChatEndpoint(**how, model=model, temperature=None, max_tokens=max_new_tokens, whole=False)


class ServerAtWork:
    """An `Engine` behind an address."""

    def __init__(self, config: OpenAIServer) -> None:
        self._config, self._known = config, frozenset[str]()

    def answers(self, network: Network, requests: Sequence[Request], max_new_tokens: int) -> Answers:
        """Each answer by itself, as it comes.

        ValueError where the server does not know the network's name or reads another prompt than was meant,
        RuntimeError at the end where some answers did not come: the next run asks for those alone.
        """
        if network.steered is not None:
            raise ValueError(f"{network.name} steers, which a server cannot; leave `engine` out for this variant")
        model = self._config.model if network.folder is None else str(network.name)
        endpoint, chat = self._config.endpoint(model, max_new_tokens), network.base.chat
        if model not in self._known:
            self._known = frozenset(endpoint.models())
        if model not in self._known:
            known = ", ".join(sorted(self._known)) or "nothing"
            what = "give one as the engine's `model`"
            if network.folder is not None:
                what = f"serve {network.folder} as {model!r} and run again"
            raise ValueError(f"the server at {endpoint.base_url} has no model {model!r} (it has: {known}); {what}")
        settings = [
            {"temperature": one.temperature, "top_p": 1.0, "seed": one.seed, "extra_body": self._config.extra or None}
            for one in requests
        ]
        failed: list[str] = []
        for place, reply in endpoint.ask_each([one.conversation for one in requests], _Beating(), settings):
            if reply.error is not None:
                failed.append(reply.error)
            else:
                yield {place: _completion(chat, requests[place], reply)}, None
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(requests)} answers did not come, first: {failed[0]}")


class _Beating(RequestHooks):
    """A sign of life with each attempt."""

    async def sending(self, index: int) -> None:
        beat()


def _completion(chat: ChatFormat, request: Request, reply: Reply) -> Completion:
    """The ids are those of the text, and of the token that ends a turn: a server does not tell its own."""
    size = len(request.ids)
    if reply.prompt_tokens not in (0, size):
        raise ValueError(
            f"the server counted {reply.prompt_tokens} prompt tokens where the base model's chat format has {size}: "
            "its chat template or tokenizer is another, so its answers are to other prompts; serve the model with its "
            "own files"
        )
    text = (reply.text or "").strip()
    ids = [*chat.response_ids(text), *([chat.end_id] if reply.finished else [])]
    return Completion(text, tuple(ids), size, 0, reply.finished)
