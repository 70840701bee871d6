"""The package's own annotators: which there are, what they need, and whether it is there.

A configuration is run by the package itself: its prompts, its random order of the two outputs, its client, its parser.
What its client answers goes through `KeptAnswers`: one failed request does not end all, and none is paid for twice.
"""

import hashlib
import importlib.util
import inspect
import json
import math
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from harness.discretion import without_keys
from harness.evaluators.alpaca_eval.spending import Spending
from harness.experiment.source import read_yaml
from harness.judging.chat_endpoint import NotAsked, Unusable, bounded_client, check_address
from harness.judging.verdicts import Journal
from harness.plugins import installed, need
from harness.quiet import silenced

CONFIG = "configs.yaml"
CLIENTS = "OPENAI_CLIENT_CONFIG_PATH"
_KEYS = "openai_api_keys"
OPENAI_ADDRESS = "https://api.openai.com/v1"
_NEEDS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "openai_completions": (("OPENAI_API_KEY", "OPENAI_API_KEYS"), "openai"),
    "anthropic_completions": (("ANTHROPIC_API_KEY",), "anthropic"),
    "google_completions": (("GOOGLE_API_KEY",), "google.generativeai"),
    "cohere_completions": (("COHERE_API_KEY",), "cohere"),
    "replicate_completions": (("REPLICATE_API_TOKEN",), "replicate"),
    "jina_chat_completions": (("JINA_CHAT_API_KEY",), None),
    "bedrock_anthropic_completions": ((), "boto3"),
    "huggingface_api_completions": (("HUGGINGFACEHUB_API_TOKEN",), "huggingface_hub"),
    "huggingface_local_completions": ((), "optimum"),
    "vllm_local_completions": ((), "vllm"),
}
"""What each client of the package needs: one of these variables, and this module."""
REMOTE = frozenset(name for name in _NEEDS if not name.endswith("_local_completions"))
"""Clients that ask a server, one request for each prompt."""
_LONGEST_ANSWER = 1 << 20
"""Characters; a longer one is not kept."""
_OPTIONS = (("model_name", str, "a text"), ("client_config_path", str, "a text"), ("client_kwargs", dict, "a mapping"))
"""What this module reads of ``completions_kwargs``, which Python type it has, and that in words."""
_UNSENT = ("num_procs", "client_kwargs", "client_config_path", "openai_api_keys", "price_per_token")
"""Settings that no answer depends on."""


@dataclass(frozen=True)
class PackageAnnotator:
    """A configuration of the package, resolved: ``configs`` by name of its annotators, prompts below ``base_dir``."""

    name: str
    configs: Mapping[str, Mapping[str, Any]]
    base_dir: Path

    @classmethod
    def load(cls, config: str | Path, *, url: str | None = None, model: str | None = None) -> "PackageAnnotator":
        """The package's configuration of that name, or a file (or folder with configs.yaml) of the same format.

        ``url`` and ``model`` stand in for the server and the model that an OpenAI-compatible configuration names.
        Raises ValueError for an unknown name, a malformed file or a client that cannot take them.
        """
        path = Path(config) if isinstance(config, Path) else _named(config)
        if path.is_dir():
            path = path / CONFIG
        configs = read_yaml(path, "annotator configuration")[1]
        if not isinstance(configs, dict) or not configs or not all(isinstance(c, dict) for c in configs.values()):
            raise ValueError(f"{path}: expected a mapping from names to annotators with prompt_template and the like")
        for name, settings in configs.items():
            _check_settings(settings, f"{path}: annotator {name!r}", path.parents[1])
        if url is not None or model is not None:
            configs = {name: _redirected(settings, url, model, path) for name, settings in configs.items()}
        return cls(path.parent.name if path.name == CONFIG else path.stem, configs, path.parents[1])

    def check(self) -> None:
        """Raise ValueError when a key, a module or the server that this configuration needs is not there."""
        for settings in self.configs.values():
            client = settings.get("fn_completions", "openai_completions")
            variables, module = _NEEDS[client]
            has_key = not variables or any(os.environ.get(name) for name in variables)
            if client == "openai_completions":
                has_key = has_key or _KEYS in settings.get("completions_kwargs", {}) or _clients(settings) is not None
            if not has_key:
                more = f" (or {CLIENTS} to the package's file of clients)" if client == "openai_completions" else ""
                raise ValueError(f"annotator {self.name!r} asks by {client}: set {' or '.join(variables)}{more}")
            if module is not None and not installed(module):
                raise ValueError(f"annotator {self.name!r} asks by {client}, which needs the module {module}")
            if client == "openai_completions":
                for address in _addresses(settings):
                    _reach(address, self.name)

    @property
    def client(self) -> str:
        """The package's client of its annotators; several where a configuration mixes them."""
        return " and ".join(
            dict.fromkeys(settings.get("fn_completions", "openai_completions") for settings in self.configs.values())
        )

    @property
    def models(self) -> list[str]:
        """The names that its annotators' models have at their server."""
        return [str(one.get("completions_kwargs", {}).get("model_name", "")) for one in self.configs.values()]

    def price(self) -> float | None:
        """Of a million tokens, as configuration or package have it, the highest of its annotators; None: not known.

        For clients that ask OpenAI's API, which say how many tokens they used. Imports the package's client.
        """
        from alpaca_eval.decoders.openai import _get_price_per_token

        named = [one.get("completions_kwargs", {}).get("price_per_token") for one in self.configs.values()]
        with silenced():  # it logs what it does not know
            prices = [1e6 * _get_price_per_token(*pair) for pair in zip(self.models, named, strict=True)]
        return max(prices) if all(math.isfinite(price) for price in prices) else None


class KeptAnswers:
    """In the place of a client of the package: prompts in, completions out, each kept in ``journal`` when readable.

    A request that fails gives None, which no parser can read; why it failed is in ``errors``, by prompt. Requests to
    a server are entered in ``spending``, and those of OpenAI's library read no more than `chat_endpoint.MOST_BYTES`.
    """

    def __init__(
        self,
        client: Callable[..., Any],
        name: str,
        journal: Journal | None,
        readable: Callable[[Any], bool],
        key: str,
        spending: Spending | None = None,
    ) -> None:
        self._client, self._name, self._journal = client, name, journal
        self._readable, self._completion_key = readable, key
        self._spending = spending
        self._known = {} if journal is None else {row["key"]: row["answer"] for row in journal.news()}
        self._lock = threading.Lock()
        self.errors: dict[str, str] = {}

    def __call__(self, prompts: Sequence[str], **settings: Any) -> dict[str, list[Any]]:
        wanted = [prompt for prompt in dict.fromkeys(prompts) if self._key(prompt, settings) not in self._known]
        answers = {prompt: self._known.get(self._key(prompt, settings)) for prompt in prompts}
        if self._client.__name__ in REMOTE:
            if self._spending is not None:
                self._spending.reused(len(prompts), len(prompts) - len(wanted))
            from alpaca_eval.constants import API_MAX_CONCURRENCY, OPENAI_MAX_CONCURRENCY

            of_openai = self._client.__name__ == "openai_completions"
            workers = settings.get("num_procs") or (OPENAI_MAX_CONCURRENCY if of_openai else API_MAX_CONCURRENCY)
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(lambda prompt: self._ask([prompt], settings), wanted))
        else:  # a model in this process, which is loaded once for all
            found = [self._ask(wanted, settings)] if wanted else []
        for part in found:
            answers |= part
        columns = dict.fromkeys((self._completion_key, "completions"))
        columns |= dict.fromkeys(name for answer in answers.values() if answer is not None for name in answer)
        result: dict[str, list[Any]] = {name: [(answers[p] or {}).get(name) for p in prompts] for name in columns}
        for name in columns:
            if name.endswith("per_example"):  # the package divides what it has by their number
                result[name] = [math.nan if value is None else value for value in result[name]]
        return result

    def _ask(self, prompts: Sequence[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
        if self._client.__name__ in REMOTE and "num_procs" in inspect.signature(self._client).parameters:
            settings = {**settings, "num_procs": 1}  # which the key leaves out
        if self._client.__name__ == "openai_completions":
            # Under a cap a call is one request: the library would repeat one that the server may charge for.
            once = {} if self._spending is None or self._spending.cap is None else {"max_retries": 0}
            given = settings.get("client_kwargs") or {}
            settings = {**settings, "client_kwargs": {"http_client": bounded_client(), **once, **given}}

        def ask() -> dict[str, Any]:
            return self._client(prompts=list(prompts), **settings)

        try:
            paid = self._spending if self._client.__name__ in REMOTE else None
            result = ask() if paid is None else paid.pay(prompts[0], settings, ask)
        except Exception as problem:
            # Whatever a provider's client raises, the other verdicts are still worth having; the reason is kept.
            own = isinstance(problem, NotAsked | Unusable)  # they say all there is to say
            reason = f"{problem}" if own else f"{type(problem).__name__}: {problem}"
            reason = without_keys(reason, _keys(settings))[:1000]
            with self._lock:
                self.errors |= dict.fromkeys(prompts, reason)
            return dict.fromkeys(prompts)
        answers: dict[str, dict[str, Any] | None] = {}
        for place, prompt in enumerate(prompts):
            said = {name: values[place] for name, values in result.items() if isinstance(values, list)}
            # JSON has no numbers for a price that is not known.
            answer = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in said.items()}
            answers[prompt] = answer
            if len(json.dumps(answer, default=str)) > _LONGEST_ANSWER:
                with self._lock:
                    self.errors[prompt] = f"the annotator's answer is longer than {_LONGEST_ANSWER:,} characters"
                answers[prompt] = None
                continue
            if self._readable(answer.get(self._completion_key)):
                key = self._key(prompt, settings)
                with self._lock:
                    self._known[key] = answer
                    if self._journal is not None:
                        self._journal.append({"key": key, "answer": answer})
        return answers

    def _key(self, prompt: str, settings: Mapping[str, Any]) -> str:
        kept = {name: value for name, value in settings.items() if name not in _UNSENT}
        return hashlib.sha256(json.dumps([self._name, kept, prompt], sort_keys=True).encode()).hexdigest()


def _keys(settings: Mapping[str, Any]) -> list[str]:
    """The keys that a configuration names itself, or the file of clients."""
    clients = _clients({"completions_kwargs": settings}) or {}
    rows = [row for listed in clients.values() if isinstance(listed, list) for row in listed if isinstance(row, dict)]
    named = [*rows, settings.get("client_kwargs") or {}]
    found = settings.get(_KEYS) or []
    return [str(row["api_key"]) for row in named if row.get("api_key")] + ([found] if isinstance(found, str) else found)


def _named(name: str) -> Path:
    need("alpaca_eval", f"annotator {name!r}")
    found = importlib.util.find_spec("alpaca_eval")
    assert found is not None and found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "evaluators_configs"
    known = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if name not in known:
        raise ValueError(
            f"alpaca_eval has no annotator {name!r}; it has: {', '.join(known)}; "
            "a configuration of your own goes into annotator_config"
        )
    return folder / name


def _check_settings(settings: Mapping[str, Any], place: str, base_dir: Path) -> None:
    client = settings.get("fn_completions", "openai_completions")
    if not isinstance(client, str) or client not in _NEEDS:
        raise ValueError(f"{place}: fn_completions {client!r} is not supported; allowed: {', '.join(_NEEDS)}")
    template = settings.get("prompt_template")
    if not isinstance(template, str):
        raise ValueError(f"{place}: 'prompt_template' must be a file's name or a prompt, got {template!r}")
    # The package takes the name of a file that is not there for the prompt itself.
    if "\n" not in template and not os.path.isfile(base_dir / template):
        raise ValueError(f"{place}: prompt_template {str(base_dir / template)!r} does not exist")
    for key in ("completions_kwargs", "completion_parser_kwargs"):
        if not isinstance(settings.get(key, {}), dict):
            raise ValueError(f"{place}: {key!r} must be a mapping, got {settings[key]!r}")
    options = settings.get("completions_kwargs", {})
    for key, kind, what in _OPTIONS:
        if key in options and not isinstance(options[key], kind):
            raise ValueError(f"{place}: completions_kwargs: {key!r} must be {what}, got {options[key]!r}")
    url = options.get("client_kwargs", {}).get("base_url", "")
    if not isinstance(url, str):
        raise ValueError(f"{place}: client_kwargs: 'base_url' must be a text, got {url!r}")


def _redirected(settings: Mapping[str, Any], url: str | None, model: str | None, path: Path) -> dict[str, Any]:
    client = settings.get("fn_completions", "openai_completions")
    if client != "openai_completions":
        raise ValueError(f"{path}: annotator_url and annotator_model go with openai_completions, not with {client}")
    options = dict(settings.get("completions_kwargs", {}))
    if url is not None:
        options["client_kwargs"] = {**options.get("client_kwargs", {}), "base_url": url}
        if not any(os.environ.get(name) for name in _NEEDS[client][0]):
            options[_KEYS] = "none"  # the client wants some key; a server that checks it refuses this one
    if model is not None:
        # What the package concludes from a model's name is kept from the original's.
        original = options.get("model_name", "")
        chat = "instruct" not in original and not original.startswith("text-")
        options = {**options, "model_name": model, "requires_chatml": options.get("requires_chatml", chat)}
    return {**settings, "completions_kwargs": options}


def _clients(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The package's own file of clients, where the configuration or the environment names one."""
    path = settings.get("completions_kwargs", {}).get("client_config_path") or os.environ.get(CLIENTS)
    if path is None:
        return None
    clients = read_yaml(path, CLIENTS)[1]
    if not isinstance(clients, dict):
        raise ValueError(f"{path}: expected a mapping from models (or `default`) to lists of clients")
    return clients


def _addresses(settings: Mapping[str, Any]) -> list[str]:
    """Where the package's OpenAI client will ask: the configuration's server, the file of clients, the default."""
    options = settings.get("completions_kwargs", {})
    fixed = options.get("client_kwargs", {}).get("base_url")
    clients = _clients(settings) or {}
    rows = clients.get(options.get("model_name"), clients.get("default")) or [{}]
    named = [row["base_url"] for row in rows if isinstance(row, dict) and row.get("base_url")]
    if fixed and named:
        raise ValueError(
            "base_url is given by the file of clients and by the configuration or annotator_url, but the package takes "
            "one: leave it out of the file"
        )
    default = os.environ.get("OPENAI_API_BASE") or os.environ.get("OPENAI_BASE_URL") or OPENAI_ADDRESS
    return [fixed] if fixed else named or [default]


def _reach(address: str, name: str) -> None:
    """Whether somebody listens there; where a proxy is in between only it could tell."""
    try:
        check_address(address, "the environment or the package's file of clients")
    except ValueError as problem:
        raise ValueError(f"annotator {name!r}: {problem}") from None
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"annotator {name!r}: {address!r} is no address; give one such as http://localhost:8000/v1")
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as problem:
        raise ValueError(
            f"annotator {name!r} asks {address}, which cannot be reached ({problem}); start that server, or name "
            "another by annotator_url"
        ) from None
