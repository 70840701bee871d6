"""Artifacts as models of FastChat: its workers, its command line and its OpenAI server run them with steering active.

`register` puts the adapter into FastChat's tables, before a module of FastChat runs in the same process:
``dspa-bench fastchat fastchat.serve.model_worker --model-path ARTIFACT --device cpu``. FastChat's own loop decodes,
token by token through ``forward(past_key_values)``. What of fschat 0.2.36 is replaced, and why (what is
mended of its API server and its browser is in __init__.py):

* ``get_model_adapter``: it tries a folder's last name on every adapter before the path, so an artifact in a folder
  called ``llama-2-dspa`` would be taken for a Llama 2.
* ``get_generate_stream_function``: for artifacts, the loop is told of one token more of context, because it cuts a
  prompt that just fits; one that does not fit is refused instead of being cut on the left.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import fastchat.model
import torch
from fastchat.conversation import IMAGE_PLACEHOLDER_STR, Conversation, SeparatorStyle
from fastchat.model import model_adapter
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchEncoding

from harness.data.refs import ModelRef
from harness.data.triples import Message
from harness.model.aligned import AlignedModel
from harness.model.artifact import read_description
from harness.model.chat import ChatFormat
from harness.model.dequantised import source_of
from harness.model.generation import generate_batches
from harness.model.pretrained import read_tokenizer
from harness.model.steering import Steering


class ArtifactAdapter(model_adapter.BaseModelAdapter):
    """FastChat's adapter for artifact folders, and nothing else: a folder that holds aligned.json."""

    def match(self, model_path: str) -> bool:
        return (Path(model_path) / "aligned.json").is_file()

    def load_model(self, model_path: str, from_pretrained_kwargs: dict) -> "tuple[ServedModel, ServedTokenizer]":
        """The model and tokenizer that FastChat's loop decodes with, in the artifact's own dtype.

        Raises ValueError for what an artifact cannot be loaded with: a revision, several GPUs, quantisation.
        """
        known = {"torch_dtype": from_pretrained_kwargs.get("torch_dtype"), "revision": "main"}
        given = {key: value for key, value in from_pretrained_kwargs.items() if value is not None}
        other = {key: value for key, value in given.items() if known.get(key) != value}
        if other:
            raise ValueError(
                f"an artifact cannot be served with {other}: it has no revision, stays on one device and in its own "
                "dtype; leave out --revision, --num-gpus, --cpu-offloading"
            )
        aligned = AlignedModel.load(model_path)
        if known["torch_dtype"] not in (None, aligned.model.dtype):
            print(f"{model_path} is served in its own dtype, {aligned.model.dtype}, not in {known['torch_dtype']}")
        return ServedModel(aligned), ServedTokenizer(aligned)

    def load_compress_model(self, model_path: str, device: str, torch_dtype: Any, revision: str = "main") -> Any:
        raise ValueError(f"{model_path} cannot be served in 8 bits: steering was fitted to its own dtype; drop it")

    def get_default_conv_template(self, model_path: str) -> Conversation:
        """A conversation that writes down who said what, for `ServedTokenizer` to put into the artifact's chat format.

        FastChat writes prompts where the weights are not, in its API server, and knows few formats. So the text that
        it passes on is none of them: every turn opens with a mark that is the artifact's own.
        """
        description = read_description(model_path)
        base = ModelRef(**{key: value for key, value in description["base"].items() if key != "hash"})
        chat = ChatFormat.of(read_tokenizer(source_of(base), revision=base.revision), base.chat)
        mark = _mark(description["fingerprint"])
        return Conversation(
            name="dspa-bench",
            system_template=f"{mark}system: {{system_message}}",
            roles=(f"{mark}user", f"{mark}assistant"),  # type: ignore[arg-type]  FastChat's annotation says one
            messages=[],
            sep_style=SeparatorStyle.ADD_COLON_TWO,
            sep="",
            sep2="",
            stop_token_ids=list(chat.stop_ids),
        )


class BadPrompt(ValueError, TypeError):
    """What an artifact cannot answer.

    A TypeError tells FastChat's worker, while it counts tokens, that this model counts by itself
    (`ServedTokenizer.num_tokens`); a ValueError, while it generates, is the reason it gives the client.
    """


class ServedTokenizer:
    """Turns what FastChat passes on into token ids, and token ids into text, by the artifact's chat format."""

    def __init__(self, aligned: AlignedModel) -> None:
        self._aligned = aligned
        self._mark = _mark(aligned.fingerprint)
        self.eos_token_id, self.stop_ids = aligned.tokenizer.eos_token_id, aligned.chat.stop_ids
        self.pad_token = aligned.tokenizer.convert_ids_to_tokens(aligned.chat.pad_id)

    def __call__(self, prompt: str | list[str], return_tensors: str | None = None) -> BatchEncoding:
        """``input_ids`` of a prompt, or of several in lists."""
        ids = self._ids(prompt) if isinstance(prompt, str) else [self._ids(one) for one in prompt]
        return BatchEncoding({"input_ids": ids}, tensor_type=return_tensors)

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        return self._aligned.tokenizer.special_tokens_map

    def num_tokens(self, prompt: str) -> int:
        """Stands for the length of a bad prompt, which is then refused where it is to be answered."""
        return 1

    def encode(self, text: str) -> list[int]:
        """Ids of an answer, which FastChat's command line counts."""
        return self._aligned.chat.response_ids(text)

    def decode(self, ids: int | list[int] | Tensor, **_options: Any) -> str:
        """Text as `AlignedModel.generate` gives it; FastChat's clean-up of spaces would alter it."""
        if isinstance(ids, int):
            return str(self._aligned.tokenizer.decode([ids]))
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return self._aligned.chat.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)

    def batch_encode_plus(self, *_args: Any, **_options: Any) -> Any:
        raise ValueError("an artifact answers conversations and gives no embeddings")

    def _ids(self, prompt: str) -> list[int]:
        """Of a conversation as `ArtifactAdapter` has it written, or of any other text as it is.

        Raises BadPrompt for pictures and for turns that the chat format does not allow.
        """
        before, *turns = prompt.split(self._mark)
        if not turns:
            return list(self._aligned.tokenizer(prompt)["input_ids"])  # type: ignore[arg-type]
        messages = []
        for turn in turns:
            role, _, text = turn.partition(":")
            messages.append(Message(role=role, content=text.removeprefix(" ")))  # type: ignore[typeddict-item]
        if before or messages.pop() != Message(role="assistant", content=""):
            raise BadPrompt("the prompt is not a conversation that ends where the assistant answers")
        if any(IMAGE_PLACEHOLDER_STR in message["content"] for message in messages):
            raise BadPrompt("the model reads text only, and the conversation has a picture")
        if messages and messages[0] == Message(role="system", content=""):
            del messages[0]
        if not messages:
            raise BadPrompt("the conversation is empty")
        try:
            return self._aligned.prompt_ids(tuple(messages))
        except TemplateError as problem:
            raise BadPrompt(f"the model's chat template refuses this conversation: {problem}") from None


class ServedModel:
    """What FastChat's loop calls: one forward after the other, each conversation under its own steering session.

    Several conversations may be decoded at once, from several threads; their forwards take turns.
    """

    def __init__(self, aligned: AlignedModel) -> None:
        self._aligned = aligned
        self._turn = Lock()
        self.config = SimpleNamespace(is_encoder_decoder=False, max_position_embeddings=aligned.base.max_length)

    @property
    def device(self) -> torch.device:
        return self._aligned.device

    def to(self, device: str) -> "ServedModel":
        """Move everything, what steers included. Raises ValueError for CUDA where there is none."""
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("there is no CUDA device on this machine; give --device cpu")
        aligned = self._aligned
        aligned.model.to(device)  # type: ignore[arg-type]
        if aligned.intervention is not None:
            self._aligned = aligned.derive(intervention=aligned.intervention.to(device))
        return self

    def generate(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        do_sample: bool,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
    ) -> Tensor:
        """Prompt and answer [1, pos], as `AlignedModel.generate` answers under torch's seed.

        Raises ValueError for a prompt without room for the answer, and for a penalty, which it does not know.
        """
        if repetition_penalty != 1:
            raise ValueError(f"--repetition_penalty {repetition_penalty} is not known to artifacts; leave it out")
        (prompt,), degrees = input_ids.tolist(), [temperature if do_sample else 0.0]
        runtime, seed = self._aligned.runtime, torch.initial_seed()
        with self._turn:
            (batch,) = generate_batches(runtime, [prompt], degrees, max_new_tokens, seed=seed, batch_size=1)
        (answer,) = batch.completions
        if answer.error is not None:
            raise ValueError(f"{answer.error}; ask for fewer with --max-new-token")
        return torch.tensor([[*prompt, *answer.token_ids]])

    def __call__(
        self, input_ids: Tensor, *, use_cache: bool, past_key_values: "_Conversation | None" = None
    ) -> SimpleNamespace:
        """``logits`` [1, pos, vocabulary] and ``past_key_values``, which is the conversation from now on."""
        conversation = past_key_values or _Conversation(self._aligned)
        with self._turn:
            return conversation.forward(self._aligned, input_ids, use_cache)


class _Conversation:
    """A cache and the steering session that belongs to it."""

    def __init__(self, aligned: AlignedModel) -> None:
        self._cache: Any = None
        session = aligned.steering()
        self._session = session if isinstance(session, Steering) else None

    def forward(self, aligned: AlignedModel, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        if self._session is not None:
            self._session.__enter__()
        try:
            out = aligned.model(input_ids=input_ids, use_cache=use_cache, past_key_values=self._cache)
        finally:
            if self._session is not None:
                self._session.pause()
        self._cache = out.past_key_values
        return SimpleNamespace(logits=out.logits, past_key_values=self)


def generate_stream(
    model: ServedModel,
    tokenizer: ServedTokenizer,
    params: dict[str, Any],
    device: str,
    context_len: int,
    stream_interval: int = 2,
    judge_sent_end: bool = False,
) -> Iterator[dict[str, Any]]:
    """FastChat's own decoding loop; an answer ends at the chat format's stop tokens, whoever asks.

    Raises ValueError for a prompt without room for ``max_new_tokens``, and for ``judge_sent_end``, which encodes a
    half-finished answer again as if it were the prompt.
    """
    from fastchat.serve.inference import generate_stream as fastchat_loop

    if judge_sent_end:
        raise ValueError("--judge-sent-end makes the answer part of the prompt that steering depends on; leave it out")
    new, prompt = int(params.get("max_new_tokens", 256)), len(tokenizer(params["prompt"]).input_ids)
    if prompt + new > context_len:
        raise ValueError(f"prompt of {prompt} tokens + {new} new ones exceed the context of {context_len}")
    stops = dict.fromkeys([*(params.get("stop_token_ids") or ()), *tokenizer.stop_ids])
    params = params | {"stop_token_ids": list(stops)}
    for output in fastchat_loop(model, tokenizer, params, device, context_len + 1, stream_interval):
        for count in ("completion_tokens", "total_tokens"):
            output["usage"][count] += 1  # FastChat gives the index of the last token
        yield output


def register() -> None:
    """Make FastChat know artifacts, in this process; more than once is as good as once."""
    if any(isinstance(adapter, ArtifactAdapter) for adapter in model_adapter.model_adapters):
        return
    artifacts = ArtifactAdapter()
    model_adapter.model_adapters.insert(0, artifacts)
    find, choose = model_adapter.get_model_adapter, model_adapter.get_generate_stream_function
    find.cache_clear()  # it remembers what it found for a path before there were artifacts

    def get_model_adapter(model_path: str) -> Any:
        return artifacts if artifacts.match(model_path) else find(model_path)

    def get_generate_stream_function(model: Any, model_path: str) -> Any:
        return generate_stream if isinstance(model, ServedModel) else choose(model, model_path)

    model_adapter.get_model_adapter = get_model_adapter  # type: ignore[assignment]
    model_adapter.get_generate_stream_function = get_generate_stream_function


@contextmanager
def answering(arguments: Sequence[str]) -> Iterator[None]:
    """Let gen_model_answer ask the artifact of its ``--model-path`` in its own format, whatever ``--model-id`` says.

    Where there is no CUDA device, on the CPU, for which it has no option.
    """
    path = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    path.add_argument("--model-path", default="")
    found = path.parse_known_args(list(arguments))[0].model_path
    with ExitStack() as mended:
        if ArtifactAdapter().match(found):
            of_path = fastchat.model.get_conversation_template
            mended.enter_context(patch.object(fastchat.model, "get_conversation_template", lambda _: of_path(found)))
            if not torch.cuda.is_available():
                mended.enter_context(patch.object(Tensor, "cuda", lambda tensor: tensor))
                mended.enter_context(patch.object(ServedModel, "to", lambda model, _: model))
        yield


def _mark(fingerprint: str) -> str:
    """Opens every turn: 16 variation selectors, which show nowhere and which nobody writes in this order by chance."""
    return "".join(chr(0xFE00 + int(digit, 16)) for digit in fingerprint[:16])
