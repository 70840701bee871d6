"""lm-eval's model class ``aligned``: an artifact, scored and generated from with its steering active.

lm-eval has no plugin discovery, so importing this module registers the class; `main` hands over to lm-eval's
own command line: ``dspa-bench lm-eval run --model aligned --model_args artifact=PATH --tasks ...``.
"""

import copy
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # lm-eval fills its registry only while it is empty: its own models come first
import lm_eval.tasks
import torch
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.models import huggingface
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string
from sqlitedict import SqliteDict
from torch import Tensor
from tqdm import tqdm

from harness.data.triples import conversation
from harness.evaluators import TASK_FOLDERS
from harness.model.aligned import AlignedModel
from harness.model.chat import with_instruction
from harness.plugins import load_plugins
from harness.quiet import silenced
from harness.responder import Responder

_log = logging.getLogger(__name__)

_HFLM: Any = huggingface.HFLM  # lm-eval's untyped decorator hides what it is

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's form: (texts for the cache or None, context ids, continuation ids)."""


class AlignedLM(_HFLM):
    """An AlignedModel behind lm-eval's interface.

    Tokenisation (BOS, trailing spaces, left truncation, rolling windows) and the generation loop are HFLM's,
    so an artifact without intervention gives the numbers of ``hf``. Log-likelihoods go through
    `AlignedModel.loglikelihood_tokens`: each distinct context is encoded once, and steering is conditioned on
    the context alone: the prefix of a rolling window, the prompt in ``generate_until``. A generated answer
    also ends at the chat format's stop tokens.
    """

    def __init__(
        self,
        artifact: str | Responder | None = None,
        *,
        pretrained: str | None = None,
        path: str | None = None,
        device: str | None = None,
        batch_size: int | str = 64,
        max_batch_size: int = 64,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        **others: Any,
    ) -> None:
        """``artifact``: an artifact folder or a loaded model (then ``device`` is the model's).

        ``pretrained`` and ``path`` are other names of it. ``batch_size='auto'`` stands for ``max_batch_size``. The last
        three are as in lm-eval's ``hf``; of its ``others`` those are taken that ask for what an artifact is anyway.
        Raises ValueError for the rest, and for no artifact or two.
        """
        named = [one for one in (artifact, pretrained, path) if one is not None]
        if len(named) != 1:
            raise ValueError(f"model `aligned` takes one artifact, --model_args artifact=FOLDER; got {len(named)}")
        artifact = named[0]
        if isinstance(artifact, str):
            artifact = AlignedModel.load(artifact, device=_device(device))
        _check_others(others, artifact)
        self.aligned = artifact
        self.truncated_requests = 0
        self.cut_tokens: dict[tuple[str, str], int] = {}
        # The choices of an item follow each other, so their context is tokenised once.
        self.tok_encode = functools.lru_cache(maxsize=4)(super().tok_encode)
        tokenizer = artifact.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer = copy.deepcopy(tokenizer)  # HFLM gives it a pad token; the model's own must stay as it is
        with silenced():  # it warns at length that a loaded model ignores its loading options
            super().__init__(
                artifact.model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=max_batch_size if str(batch_size).startswith("auto") else int(batch_size),
                max_length=max_length,
                add_bos_token=add_bos_token,
                prefix_token_id=prefix_token_id,
            )

    @property
    def tokenizer_name(self) -> str:
        """Keys lm-eval's cache of built requests, so it names the template too."""
        return f"{super().tokenizer_name}-{self.aligned.chat.identity[:16]}"

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Give this model its own table in the file of ``--use_cache``, whose keys do not know the model."""
        super().set_cache_hook(cache_hook)
        database = cache_hook.dbdict
        if database is not None:
            settings = [self.aligned.fingerprint, self.max_length, self.add_bos_token, self.prefix_token_id]
            database.tablename = f"aligned-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()}"
            SqliteDict(database.filename, tablename=database.tablename).close()  # creates the table

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        fitted = [(self._fit(texts, context, continuation), continuation) for texts, context, continuation in requests]
        with tqdm(total=len(fitted), desc="Log-likelihood requests", disable=disable_tqdm) as bar:
            scores = self.aligned.loglikelihood_tokens(
                fitted, batch_size=override_bs or int(self.batch_size), progress=bar.update
            )
        for (texts, _, _), score in zip(requests, scores, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def _fit(self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]) -> list[int]:
        """The context, cut on the left where it does not fit, as ``hf`` does; cuts are counted and logged."""
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens exceeds the context length {self.max_length}; "
                "this task cannot be scored with this model"
            )
        excess = len(context) + len(continuation) - (self.max_length + 1)
        if excess <= 0:
            return context
        self.truncated_requests += 1
        if texts is not None:
            self.cut_tokens[texts] = excess
        _log.warning("cut %d tokens from the left of a context to fit the context length %d", excess, self.max_length)
        return context[excess:]

    def tok_batch_encode(
        self, strings: list[str], *, left_truncate_len: int | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """As HFLM's for the prompts of ``generate_until``; those it cuts on the left are counted, too."""
        ids, mask = super().tok_batch_encode(strings, **options)
        if left_truncate_len is None or ids.shape[1] <= left_truncate_len:
            return ids, mask
        excess = [int(length) - left_truncate_len for length in mask.sum(-1)]
        cut = sum(tokens > 0 for tokens in excess)
        self.cut_tokens |= {(text, ""): tokens for text, tokens in zip(strings, excess, strict=True) if tokens > 0}
        self.truncated_requests += cut
        _log.warning("cut %d prompts on the left to %d tokens, to leave room for the answer", cut, left_truncate_len)
        return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        # Past a stop token a row is not steered any more, so its generation has to end there.
        ends = list(self.aligned.chat.stop_ids)
        with self.aligned.steering():
            return super()._model_generate(context, max_length, stop, eos_token_id=ends, **kwargs)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The artifact's own chat format as text, with the instruction that it carries."""
        turns = with_instruction(conversation(chat_history), self.aligned.system_prompt)  # type: ignore[arg-type]
        if self.aligned.chat.kind == "hh":
            bos = self.tokenizer.bos_token or ""  # HFLM adds none to a text that has it
            return bos + self.aligned.chat.hh_text(turns, generation_prompt=add_generation_prompt)
        return super().apply_chat_template(list(self.aligned.chat.writable(turns)), add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What lm-eval keeps in its results; a name can only choose among a tokenizer's own templates."""
        if self.aligned.chat.kind == "hh":
            if isinstance(chat_template, str):
                raise ValueError(f"chat format 'hh' has no template called {chat_template!r}; leave the name out")
            return "hh" if chat_template else None
        return super().chat_template(chat_template)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results file about the model."""
        return {
            "model_num_parameters": self.aligned.model.num_parameters(),
            "model_dtype": self.aligned.model.dtype,
            "model_revision": "",
            "model_sha": self.aligned.fingerprint,
            "aligned_method": self.aligned.method,
            "aligned_fingerprint": self.aligned.fingerprint,
            "truncated_requests": self.truncated_requests,
        }


register_model("aligned")(AlignedLM)  # not as a decorator: it would hide the class from the type checker
_usual_name = GeneralConfigTracker._get_model_name


def _model_name(model_args: str | dict[str, Any] | None) -> str | None:
    """What lm-eval calls a model in its files, and their folder; it draws a name where it finds none."""
    given = simple_parse_args_string(model_args) if isinstance(model_args, str) else model_args or {}
    return str(given["artifact"]) if "artifact" in given else _usual_name(model_args)


GeneralConfigTracker._get_model_name = staticmethod(_model_name)  # type: ignore[method-assign]

_REFUSED = {
    "max_gen_toks": "give --gen_kwargs max_gen_toks=N instead",
    "enable_thinking": "the artifact's own chat format decides",
    "chat_template_args": "the artifact's own chat format decides",
    "peft": "an artifact holds its adapter",
    "tokenizer": "an artifact has its base model's",
    "parallelize": "an artifact stays on one device",
}


def _check_others(others: dict[str, Any], aligned: Any) -> None:
    """Raise ValueError for an argument of lm-eval's ``hf`` that asks for something else than the artifact is."""
    dtype = str(aligned.model.dtype).removeprefix("torch.")
    same = {
        "dtype": ("auto", dtype, aligned.model.dtype),
        "trust_remote_code": (False, None),
        "revision": ("main", "", None),
        "backend": ("default", "causal"),
        "parallelize": (False, None),
        "use_fast_tokenizer": (True, None),
    }
    for name, value in others.items():
        if value in same.get(name, ()):
            continue
        if name == "dtype":
            why = f"the artifact is {dtype}, which steering and weights were fitted to; leave it out"
        elif name in same:
            why = _REFUSED.get(name, "an artifact is loaded as its base model was fitted") + "; leave it out"
        else:
            why = _REFUSED.get(name, "leave it out") + (
                "; it takes artifact (or pretrained, path), device, batch_size, max_batch_size, max_length, "
                "add_bos_token and prefix_token_id"
            )
        raise ValueError(f"model `aligned` does not take {name}={value} in --model_args: {why}")


def _device(name: str | None) -> str:
    """lm-eval's command line asks for cuda:0 by itself; without CUDA that means the CPU, as for ``hf``."""
    if not torch.cuda.is_available() and name is not None and name.startswith("cuda"):
        _log.warning("no CUDA device: running on the CPU")
        return "cpu"
    return name or ("cuda:0" if torch.cuda.is_available() else "cpu")


def task_manager(include_path: str | Sequence[str | Path] | None = None, **options: Any) -> TaskManager:
    """lm-eval's index of tasks with the folders of installed packages in it; ``include_path`` wins over them."""
    load_plugins()
    given = [include_path] if isinstance(include_path, str) else list(include_path or ())
    return TaskManager(include_path=[*TASK_FOLDERS, *given], **options)


def main(argv: Sequence[str]) -> None:
    """lm-eval's command line with ``aligned`` among its models and our task files among its tasks.

    ``argv`` is what follows ``lm-eval``.
    """
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv, lm_eval.tasks.TaskManager
    # lm-eval's parser looks at sys.argv itself, and its commands make an index with one more folder at most.
    sys.argv, lm_eval.tasks.TaskManager = ["lm-eval", *argv], task_manager  # type: ignore[misc]
    try:
        cli_evaluate()
    finally:
        sys.argv, lm_eval.tasks.TaskManager = before  # type: ignore[misc]
