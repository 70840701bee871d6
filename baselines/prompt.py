"""prompt: an instruction in front of every conversation ("prompt engineering"), the cheapest alignment there is."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from baselines.instruction import check_instruction
from harness.compute import Meter
from harness.data.triples import Triple
from harness.method import BaseShape, MethodConfig, register_method
from harness.model.aligned import AlignedModel

INSTRUCTION = (
    "Answer as a capable and considerate assistant: do what was asked, get the facts right, choose a tone that fits "
    "the request, and decline politely when helping would cause harm."
)


@register_method("prompt")
class Prompt(MethodConfig):
    """The instruction is a system turn where the template has one, else it opens the first user turn.

    Its default is our own wording, in English. A base model whose tokenizer lacks one of its words is refused: give
    such a model an instruction in words that it knows.
    """

    uses_triples: ClassVar[bool] = False
    instruction: Annotated[str, Field(min_length=1, description="what is put in front of every conversation")] = (
        INSTRUCTION
    )

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,)

    def check(self, base: BaseShape) -> None:
        """Raise ValueError for an instruction with words that the base model's tokenizer does not know."""
        check_instruction("prompt: instruction", self.instruction, base.unknown_words)

    def fit(self, base: AlignedModel, triples: Sequence[Triple], *, meter: Meter, seed: int) -> AlignedModel:
        """Nothing is computed and nothing billed."""
        check_instruction("prompt: instruction", self.instruction, base.chat.unknown_words)
        return base.derive(method="prompt", params=self.model_dump(mode="json"), system_prompt=self.instruction)
