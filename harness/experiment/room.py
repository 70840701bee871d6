"""Whether triples and evaluation prompts fit the base model's context, found out from its tokenizer alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from harness.benchmark import BenchmarkConfig, Item, PromptBenchmark
from harness.data.refs import ModelRef
from harness.data.triples import Conversation, Triple, TripleFile, conversation
from harness.model.chat import ChatFormat, with_instruction
from harness.model.dequantised import source_of
from harness.model.pretrained import read_config, read_tokenizer
from harness.run_folder.left_out import LeftOutItem

TooLong = Literal["refuse", "skip"]
_NAMED = 30
"""So many of what is left out are named in a note; left_out.json names them all."""


@dataclass(frozen=True)
class Room:
    """The context of a model: ``max_length`` tokens. ``instructions`` are what methods put in front of a prompt."""

    chat: ChatFormat
    max_length: int
    instructions: tuple[str, ...] = ()

    @classmethod
    def of(cls, ref: ModelRef) -> "Room":
        """That of a base model; loads its configuration and tokenizer, never its weights."""
        source = source_of(ref)
        config = read_config(source, revision=ref.revision).get_text_config()
        tokenizer = read_tokenizer(source, revision=ref.revision)
        return cls(ChatFormat.of(tokenizer, ref.chat), int(config.max_position_embeddings))

    def given(self, instructions: Iterable[str]) -> "Room":
        """The same with these instructions."""
        return replace(self, instructions=tuple(dict.fromkeys(instructions)))

    def excess(self, prompt: Conversation, answers: Sequence[str] = (), generated: int = 0) -> int | None:
        """Tokens of a prompt with the longest of ``answers`` and the token that ends it, or with ``generated`` new
        ones; None where they fit.

        The longest instruction is counted. What is short enough in bytes is not tokenised: a token stands for one at
        least (a normaliser that makes texts longer is the exception; there the model's own check remains).
        """
        said = [message["content"] for message in prompt]
        bound = self._frame * (len(prompt) + 1) + sum(map(_size, said)) + max([generated, *map(_size, answers)])
        if bound <= self.max_length:
            return None
        longest = max([generated, *(len(self.chat.response_ids(answer)) + 1 for answer in answers)])
        tokens = self.prompt_tokens(prompt) + longest
        return tokens if tokens > self.max_length else None

    def prompt_tokens(self, prompt: Conversation) -> int:
        """Of a prompt with the longest of the instructions in front."""
        return max(len(self.chat.prompt_ids(with_instruction(prompt, text))) for text in (None, *self.instructions))

    @cached_property
    def _frame(self) -> int:
        """Tokens that the format and an instruction may add for a turn, at most."""
        return self.prompt_tokens(conversation("a"))

    def long_triples(self, found: TripleFile) -> list[LeftOutItem]:
        """The triples that do not fit."""
        long = []
        for number, triple in found.distinct.items():
            tokens = self.excess(triple.prompt, (triple.chosen, triple.rejected))
            if tokens is not None:
                long.append(LeftOutItem(name=triple.key, place=f"{found.rows.unit} {number}", tokens=tokens))
        return long

    def long_items(self, items: Sequence[Item]) -> list[LeftOutItem]:
        """The items that do not fit, in the worst case."""
        long = []
        for item in items:
            tokens = self.excess(item.conversation, item.answers, item.generated * item.rounds)
            if tokens is not None:
                long.append(LeftOutItem(name=item.name, place=item.place, tokens=tokens))
        return long

    def largest_answer(self, items: Sequence[Item]) -> int:
        """The most new tokens an answer with which all of ``items`` fit; may be below 1."""
        return min((self.max_length - self.prompt_tokens(item.conversation)) // item.rounds for item in items)


def fitting_triples(
    found: TripleFile, room: Room, too_long: TooLong, option: str
) -> tuple[list[Triple], list[LeftOutItem], str | None]:
    """(each triple that fits once, those that do not, a note on them); ``option`` is how one asks for leaving them out.

    ValueError with their number and first places, unless they are to be skipped, and where nothing fits.
    """
    triples, long = found.distinct, room.long_triples(found)
    if not long:
        return list(triples.values()), [], None
    numbers = [int(item.place.split()[-1]) for item in long]
    text = f"{len(long)} of {len(triples)} triples do not fit the context of {room.max_length} tokens"
    text += " with the longest instruction in front" if room.instructions else ""
    if too_long == "refuse" or len(long) == len(triples):
        mend = f"leave them out with {option}, or take" if len(long) < len(triples) else "take"
        raise ValueError(
            f"{found.rows.name}: {text}: {found.named(numbers)}; the longest has {max(i.tokens for i in long)}; {mend} "
            "a base model with a longer context"
        )
    left = {item.name for item in long}
    note = f"{found.rows.name.rpartition('/')[2]}: {text} and are left out ({option}): {found.named(numbers, _NAMED)}"
    return [triple for triple in triples.values() if triple.key not in left], long, note


def fitting_benchmark(
    name: str, benchmark: BenchmarkConfig, room: Room | None
) -> tuple[BenchmarkConfig, list[LeftOutItem], str | None]:
    """(the benchmark without the items that do not fit, those, a note on them), as `fitting_triples`.

    A benchmark that does not say what it asks is as it was, and so are all without a room.
    """
    if room is None or not isinstance(benchmark, PromptBenchmark):
        return benchmark, [], None
    items = benchmark.items()
    long = room.long_items(items)
    if not long:
        return benchmark, [], None
    generated = [item for item in items if item.generated]
    counted = "prompt and longest answer" if generated else "prompt and answer"
    text = f"{len(long)} of {len(items)} prompts of {name} do not fit the context of {room.max_length} tokens"
    text += f" ({counted}" + (", in the worst case of every turn)" if any(i.rounds > 1 for i in items) else ")")
    if benchmark.too_long == "refuse" or len(long) == len(items):
        ways = []
        if generated:
            most = room.largest_answer(items)
            ways.append(f"set max_new_tokens to at most {most}" if most > 0 else "give shorter prompts")
        if len(long) < len(items):
            ways.append("leave them out with `too_long: skip`")
        ways.append("take a base model with a longer context")
        raise ValueError(
            f"{text}: {_named(long, 3)}; the longest has {max(i.tokens for i in long)}; {', or '.join(ways)}"
        )
    note = f"{text} and are left out (too_long: skip): {_named(long, _NAMED)}"
    return benchmark.without(frozenset(item.name for item in long)), long, note


def _named(long: Sequence[LeftOutItem], shown: int) -> str:
    more = "" if len(long) <= shown else f" and {len(long) - shown} more"
    return ", ".join(item.place for item in long[:shown]) + more


def _size(text: str) -> int:
    return len(text.encode()) + 1


def without_left_out(
    benchmarks: Mapping[str, BenchmarkConfig], left_out: Mapping[str, Sequence[LeftOutItem]]
) -> dict[str, BenchmarkConfig]:
    """``benchmarks`` without what a run left out."""
    found = dict(benchmarks)
    for name, items in left_out.items():
        benchmark = found.get(name)
        if isinstance(benchmark, PromptBenchmark):
            found[name] = benchmark.without(frozenset(item.name for item in items))
    return found
