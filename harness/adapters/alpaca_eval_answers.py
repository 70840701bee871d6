"""Answers of the package's annotators: one failed request does not end all, and none is paid for twice."""

import hashlib
import inspect
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.adapters.alpaca_eval_annotator import REMOTE, without_keys
from harness.judges.journal import Journal

_UNSENT = ("num_procs", "client_kwargs", "client_config_path", "openai_api_keys", "price_per_token")
"""Settings that no answer depends on."""


class KeptAnswers:
    """In the place of a client of the package: prompts in, completions out, each kept in ``journal`` when readable.

    A request that fails gives None, which no parser can read; why it failed is in ``errors``, by prompt.
    """

    def __init__(
        self,
        client: Callable[..., Any],
        name: str,
        journal: Journal | None,
        readable: Callable[[Any], bool],
        key: str,
    ) -> None:
        self._client, self._name, self._journal = client, name, journal
        self._readable, self._completion_key = readable, key
        self._known = {} if journal is None else {row["key"]: row["answer"] for row in journal.news()}
        self._lock = threading.Lock()
        self.errors: dict[str, str] = {}

    def __call__(self, prompts: Sequence[str], **settings: Any) -> dict[str, list[Any]]:
        wanted = [prompt for prompt in dict.fromkeys(prompts) if self._key(prompt, settings) not in self._known]
        answers = {prompt: self._known.get(self._key(prompt, settings)) for prompt in prompts}
        if self._client.__name__ in REMOTE:
            workers = settings.get("num_procs") or _concurrency(self._client.__name__)
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(lambda prompt: self._ask([prompt], settings), wanted))
        else:  # a model in this process, which is loaded once for all
            found = [self._ask(wanted, settings)] if wanted else []
        for part in found:
            answers |= part
        columns = dict.fromkeys(name for answer in answers.values() if answer is not None for name in answer)
        result = {name: [_value(answers[prompt], name) for prompt in prompts] for name in columns}
        return {self._completion_key: [None] * len(prompts), "completions": [None] * len(prompts), **result}

    def _ask(self, prompts: Sequence[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
        alone = {"num_procs": 1} if "num_procs" in inspect.signature(self._client).parameters else {}
        options = {**settings, **(alone if self._client.__name__ in REMOTE else {})}
        try:
            result = self._client(prompts=list(prompts), **options)
        except Exception as problem:
            # Whatever a provider's client raises, the other verdicts are still worth having; the reason is kept.
            reason = without_keys(f"{type(problem).__name__}: {problem}")
            with self._lock:
                self.errors |= dict.fromkeys(prompts, reason)
            return dict.fromkeys(prompts)
        answers: dict[str, dict[str, Any] | None] = {}
        for place, prompt in enumerate(prompts):
            answer = {name: _plain(values[place]) for name, values in result.items() if isinstance(values, list)}
            answers[prompt] = answer
            if self._readable(answer.get(self._completion_key)):
                with self._lock:
                    self._keep(self._key(prompt, settings), answer)
        return answers

    def _keep(self, key: str, answer: dict[str, Any]) -> None:
        self._known[key] = answer
        if self._journal is not None:
            self._journal.append({"key": key, "answer": answer})

    def _key(self, prompt: str, settings: Mapping[str, Any]) -> str:
        kept = {name: value for name, value in settings.items() if name not in _UNSENT}
        return hashlib.sha256(json.dumps([self._name, kept, prompt], sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: a price that is not known is None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _value(answer: Mapping[str, Any] | None, name: str) -> Any:
    """The package divides what it has per example, so a figure that is not known is not a number there."""
    value = (answer or {}).get(name)
    return math.nan if value is None and name.endswith("per_example") else value


def _concurrency(client: str) -> int:
    from alpaca_eval import constants

    return constants.OPENAI_MAX_CONCURRENCY if client == "openai_completions" else constants.API_MAX_CONCURRENCY
