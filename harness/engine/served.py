"""An aligned model whose answers an engine generates; everything else of it is the model's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.triples import Conversation
from harness.engine.engine import Engine, Network, Request
from harness.model.chat import with_instruction
from harness.model.generation import Batch, row_seed, temperatures_of, without_room
from harness.pulse import beat

if TYPE_CHECKING:
    from harness.model.aligned import AlignedModel


@dataclass(frozen=True, eq=False)
class Served:
    """``aligned`` as `harness.experiment.answering.Answering` asks it; its weights run in ``engine``, too.

    Log-likelihoods, and whatever else runs the network, are ``aligned``'s.
    """

    aligned: "AlignedModel"
    engine: Engine
    network: Network

    @classmethod
    def of(cls, aligned: "AlignedModel", engine: Engine, artifact: Path, name: str) -> "Served":
        """The model of the cell ``name``, which lies in the folder ``artifact``."""
        network, steering = Network(aligned.base, name), aligned.intervention
        if steering is not None:
            layers = frozenset((*steering.read_layers, *steering.write_layers))
            network = replace(network, steered=artifact.absolute(), layers=layers)
        if aligned.delta != "none":
            folder = (artifact / aligned.delta).absolute()
            network = replace(network, folder=folder, whole=aligned.delta == "weights")
        return cls(aligned, engine, network)

    def unaligned(self) -> "Served":
        """The base model in the same engine."""
        return Served(self.aligned.unaligned(), self.engine, Network(self.aligned.base))

    def generate_batches(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float | Sequence[float] = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> Iterator[Batch]:
        """As `AlignedModel.generate_batches`, but all prompts at once: a batch is what the engine ends with together.

        ``batch_size`` is not looked at. Greedy answers are those of transformers up to rounding; sampled ones come
        from the same distribution by another noise.
        """
        chat, instruction = self.aligned.chat, self.aligned.system_prompt
        temperatures = temperatures_of(temperature, len(conversations), max_new_tokens, batch_size)
        prompts = [self.aligned.prompt_ids(one) for one in conversations]
        long = without_room(prompts, self.aligned.base.max_length, max_new_tokens)
        if long is not None:
            yield long
        rows = [row for row in range(len(prompts)) if long is None or row not in long.rows]
        requests = [
            Request(
                chat.writable(with_instruction(conversations[row], instruction)),
                tuple(prompts[row]),
                temperatures[row],
                row_seed(seed, prompts[row]) % 2**31,
            )
            for row in rows
        ]
        for found, tally in self.engine.answers(self.network, requests, max_new_tokens) if requests else ():
            beat()
            yield Batch(tuple(rows[place] for place in found), tuple(found.values()), tally)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.aligned, name)
