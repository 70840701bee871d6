"""left_out.json: the triples and evaluation prompts that a run leaves out, because they do not fit the context."""

from typing import ClassVar

from pydantic import Field

from harness.files import Document


class LeftOutItem(Document):
    """What is left out: ``name`` is a triple's key or a benchmark's own name, ``place`` where a reader finds it,
    ``tokens`` how many it has, in the worst case where answers are generated."""

    name: str
    place: str
    tokens: int


class LeftOut(Document):
    """What a run leaves out of its triples and, by benchmark, of its prompts. ``context`` is the model's, in tokens."""

    sealed: ClassVar[bool] = True
    context: int = 0
    triples: tuple[LeftOutItem, ...] = ()
    benchmarks: dict[str, tuple[LeftOutItem, ...]] = Field(default={})

    def __bool__(self) -> bool:
        return bool(self.triples or self.benchmarks)
