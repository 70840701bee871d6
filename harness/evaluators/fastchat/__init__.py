"""FastChat: its files (files.py), artifacts as its models (model.py), and here what of fschat 0.2.36 can be mended."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from harness.evaluators.fastchat.files import prompt_name

Games = dict[tuple[str, str], dict[tuple, dict[str, Any]]]
"""FastChat's judgments, by (judge, prompt name)."""


def mend_chunks() -> None:
    """Let the OpenAI server write the pieces of a stream: it does so by a call that pydantic 2 refuses."""
    from fastchat.protocol import openai_api_protocol

    def as_json(self: Any, *, ensure_ascii: bool, **options: Any) -> str:
        return json.dumps(self.model_dump(mode="json", **options), ensure_ascii=ensure_ascii)

    for chunk in (openai_api_protocol.ChatCompletionStreamResponse, openai_api_protocol.CompletionStreamResponse):
        chunk.json = as_json  # type: ignore[method-assign]


def mend_browser() -> None:
    """Let qa_browser, written for a judge called gpt-4, read the only file of each kind among the judgments.

    It raises ValueError where there are several; where there is none, the browser shows no judgments of that kind.
    """
    from fastchat.llm_judge import common

    common.load_single_model_judgments = _loader(common.load_single_model_judgments, "single")
    common.load_pairwise_model_judgments = _loader(common.load_pairwise_model_judgments, "pair")


def _loader(load: Callable[[str], Games], mode: Literal["single", "pair"]) -> Callable[[str], Games]:
    def loader(filename: str) -> Games:
        found = sorted(Path(filename).parent.glob(f"*_{mode}.jsonl"))
        if len(found) > 1:
            raise ValueError(
                f"{found[0].parent} has judgments of several judges; keep one of {', '.join(map(str, found))}"
            )
        games = {prompt: judged for (_, prompt), judged in (load(str(found[0])) if found else {}).items()}
        shown = {}
        for turn in (1, 2):
            plain, by_reference = (prompt_name(turn, reference=given, mode=mode) for given in (False, True))
            shown["gpt-4", plain] = games.get(plain, {})
            # FastChat looks for a judgment by reference on every question of some categories.
            shown["gpt-4", by_reference] = {**games.get(plain, {}), **games.get(by_reference, {})}
        return shown

    return loader
