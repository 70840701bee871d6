"""FastChat's qa_browser on any judge's files: it is written for one judge, called gpt-4."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastchat.llm_judge import common

Games = dict[tuple, dict[str, Any]]


class AnyJudge(dict[tuple[str, str], Games]):
    """{(judge, prompt name): judgments} of one judge, found by the prompt's name alone.

    FastChat looks for a judgment by reference on every question of some categories; without one there it gets the plain
    judgment, and without any an empty table, which it shows as N/A.
    """

    def __getitem__(self, key: tuple[str, str]) -> Games:
        _, wanted = key
        plain = wanted.replace("single-math", "single").replace("pair-math-v1", "pair-v2")
        by_prompt = {prompt: games for (_, prompt), games in self.items()}
        return {**by_prompt.get(plain, {}), **by_prompt.get(wanted, {})}


def mend_browser() -> None:
    """Let qa_browser read the only file of each kind in the folder of judgments, whatever its judge's name.

    It raises ValueError where there are several; where there is none, the browser shows no judgments of that kind.
    """
    common.load_single_model_judgments = _loader(common.load_single_model_judgments, "single")
    common.load_pairwise_model_judgments = _loader(common.load_pairwise_model_judgments, "pair")


def _loader(load: Callable[[str], Mapping[tuple, Games]], mode: str) -> Callable[[str], AnyJudge]:
    def loader(filename: str) -> AnyJudge:
        found = sorted(Path(filename).parent.glob(f"*_{mode}.jsonl"))
        if len(found) > 1:
            raise ValueError(
                f"{found[0].parent} has judgments of several judges; keep one of {', '.join(map(str, found))}"
            )
        return AnyJudge(load(str(found[0])) if found else {})

    return loader
