"""Residual streams of several layers from one pass over the text, kept on disk while SAEs are trained on them."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dspa.saes.quality import Text, batch_texts
from harness.files import write_json
from harness.model.aligned import AlignedModel
from harness.model.decoder import find_decoder
from harness.model.residuals import early_residuals

FORWARD_TOKENS = 4096
"""Positions of a forward, padding included, unless a single text is longer."""
_MARK_EVERY = 16
_BYTES = {torch.float32: np.uint32, torch.bfloat16: np.uint16, torch.float16: np.uint16}
_BLOCK = 65_536


def counted_tokens(base: AlignedModel, text: Text) -> int:
    """How many of a text's tokens an SAE is to see (see `batch_texts`)."""
    special = set(base.chat.special_ids)
    return sum(token not in special for token in text.ids[text.start :])


def forward_batches(texts: Sequence[Text]) -> list[list[Text]]:
    """All texts, longest first, in batches of at most `FORWARD_TOKENS` positions."""
    batches: list[list[Text]] = []
    for text in sorted(texts, key=lambda text: -len(text.ids)):
        if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].ids) > FORWARD_TOKENS:
            batches.append([])
        batches[-1].append(text)
    return batches


@torch.no_grad()
def residuals(base: AlignedModel, layers: set[int], batch: Sequence[Text]) -> dict[int, Float[Tensor, "token d_model"]]:
    """Layer -> residual stream after it at the batch's counted tokens, in the model's dtype.

    One forward for all layers, which ends behind the deepest: later ones, and the LM head, never run.
    """
    (padded,) = batch_texts(base, batch, len(batch))
    found = early_residuals(find_decoder(base.model), layers, padded.ids, padded.mask)
    return {layer: residual[padded.counted] for layer, residual in found.items()}


@dataclass(frozen=True)
class ActivationFiles:
    """The residual stream of ``tokens`` tokens after every layer, a file each, in ``folder``; in the model's dtype.

    Files grow batch by batch; what `fill` has marked as written is not computed again.
    """

    folder: Path
    layers: tuple[int, ...]
    tokens: int
    d_model: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """What the files take when they are full."""
        return len(self.layers) * self.tokens * self.d_model * self.dtype.itemsize

    @property
    def batches_done(self) -> int:
        """How many batches are written and marked."""
        mark = self.folder / "written.json"
        return int(json.loads(mark.read_text(encoding="utf-8"))["batches"]) if mark.is_file() else 0

    def fill(
        self, base: AlignedModel, batches: Sequence[Sequence[Text]], progress: Callable[[int], object] = lambda _: None
    ) -> None:
        """Pass the batches that are not written yet; ``progress`` is told how many are after each.

        Raises OSError when the disk is full, and leaves what is written so far.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self.batches_done
        size = sum(counted_tokens(base, text) for batch in batches[:done] for text in batch)
        size *= self.d_model * self.dtype.itemsize
        streams = {layer: self._path(layer).open("ab") for layer in self.layers}
        try:
            if any(stream.tell() < size for stream in streams.values()):
                done = size = 0
            for stream in streams.values():
                stream.truncate(size)  # what came after the last mark
            for index in range(done, len(batches)):
                for layer, found in residuals(base, set(self.layers), batches[index]).items():
                    streams[layer].write(found.cpu().contiguous().view(torch.uint8).numpy().tobytes())
                if (index + 1) % _MARK_EVERY == 0 or index + 1 == len(batches):
                    for stream in streams.values():
                        stream.flush()
                        os.fsync(stream.fileno())
                    write_json(self.folder / "written.json", {"batches": index + 1})
                progress(index + 1)
        finally:
            for stream in streams.values():
                stream.close()

    def norms(self, layer: int) -> Float[Tensor, " token"]:
        """Norm of every token's residual, in fp32."""
        rows = range(0, self.tokens, _BLOCK)
        return torch.cat([self.rows(layer, slice(at, at + _BLOCK)).norm(dim=-1) for at in rows])

    def rows(self, layer: int, which: Int[Tensor, " token"] | slice) -> Float[Tensor, "token d_model"]:
        """Some tokens' residuals in fp32; only these are read into memory."""
        words = np.memmap(self._path(layer), _BYTES[self.dtype], "r", shape=(self.tokens, self.d_model))
        found = words[which] if isinstance(which, slice) else words[which.numpy()]
        return torch.from_numpy(np.array(found)).view(self.dtype).float()

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer_{layer}.bin"


@dataclass(frozen=True)
class Batches:
    """Shuffled batches of the tokens ``kept``, anew in every epoch; any step's batch can be had by itself.

    Memory: eight bytes for every token, beside one batch.
    """

    files: ActivationFiles
    layer: int
    kept: Int[Tensor, " kept"]
    size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.kept) < self.size:
            raise ValueError(
                f"layer {self.layer}: the text has {len(self.kept)} training tokens without those of large norm, less "
                f"than one batch of {self.size}; give more text, or a smaller --batch-size"
            )

    def after(self, steps: int) -> Iterator[Float[Tensor, "batch d_model"]]:
        """Batches without end, from that of step ``steps`` on."""
        per_epoch = len(self.kept) // self.size
        while True:
            epoch, first = divmod(steps, per_epoch)
            order = self.order(epoch)
            for index in range(first, per_epoch):
                yield self.files.rows(self.layer, order[index * self.size : (index + 1) * self.size])
            steps = (epoch + 1) * per_epoch

    def order(self, epoch: int) -> Int[Tensor, " kept"]:
        """The tokens in the order of an epoch, which ``seed`` decides."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return self.kept[torch.randperm(len(self.kept), generator=draw)]
