"""What an audit reads: texts as token ids, passed once as far as the deepest layer needed; memory stays flat."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dspa.saes.quality import reconstruct
from dspa.saes.sae import ResidualSAE
from harness.data.triples import Conversation, Triple, load_triples
from harness.files import read_jsonl, read_text
from harness.model.aligned import AlignedModel
from harness.model.batching import pad_rows
from harness.model.decoder import find_decoder
from harness.model.residuals import early_residuals

KINDS = ("prompt", "chosen", "rejected", "text")
NOT_COUNTED = -1
_TOKENS_A_BATCH = 4096


@dataclass(frozen=True)
class Text:
    """Token ids, and for each its kind (an index; -1: not counted, as BOS, EOS and what another text counts)."""

    ids: tuple[int, ...]
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class Corpus:
    """``texts`` with kinds from `KINDS`, and the different ``prompts`` among them (none in plain texts)."""

    texts: tuple[Text, ...]
    prompts: tuple[Conversation, ...]


def text_of(model: AlignedModel, parts: list[tuple[list[int], int]]) -> Text:
    """One text of (token ids, kind) parts; special tokens are not counted."""
    special = set(model.chat.special_ids)
    ids = tuple(i for part, _ in parts for i in part)
    return Text(ids, tuple(NOT_COUNTED if i in special else kind for part, kind in parts for i in part))


def read_corpus(path: Path, model: AlignedModel) -> Corpus:
    """Triples (JSONL with prompt, chosen, rejected) or plain texts (JSONL with text, or .txt with one a line).

    Raises ValueError, with file:line where there is one, for what is neither, and for triples that do not fit the
    model's context. Longer plain texts are read in windows of the context's length.
    """
    if path.suffix == ".txt":
        lines = [line.strip() for line in read_text(path, "texts").split("\n") if line.strip()]
        if not lines:
            raise ValueError(f"{path}: the texts file is empty")
        return _plain(lines, model)
    rows = read_jsonl(path, "texts")
    if "chosen" in rows[0][1]:
        triples = load_triples(path)
        try:
            return corpus_of(triples, model)
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None
    for number, row in rows:
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise ValueError(f"{path}:{number}: needs a non-empty 'text', or prompt, chosen and rejected on every line")
    return _plain([row["text"] for _, row in rows], model)


def corpus_of(triples: Iterable[Triple], model: AlignedModel) -> Corpus:
    """Both answers of every triple, each behind its prompt; ValueError for one that does not fit the context."""
    texts, prompts = [], {}
    for triple in triples:
        prompt, chosen, rejected = model.triple_ids(triple)
        key = json.dumps(triple.prompt, sort_keys=True)
        # A prompt's tokens count once, however many answers follow it.
        first = NOT_COUNTED if key in prompts else KINDS.index("prompt")
        texts.append(text_of(model, [(prompt, first), (chosen, KINDS.index("chosen"))]))
        texts.append(text_of(model, [(prompt, NOT_COUNTED), (rejected, KINDS.index("rejected"))]))
        prompts[key] = triple.prompt
    return Corpus(tuple(texts), tuple(prompts.values()))


def _plain(lines: list[str], model: AlignedModel) -> Corpus:
    tokenizer, texts = model.tokenizer, []
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]  # type: ignore[arg-type]
    room = model.base.max_length - len(bos)
    for line in lines:
        ids = list(tokenizer.encode(line, add_special_tokens=False))
        for start in range(0, len(ids), room):
            texts.append(text_of(model, [(bos + ids[start : start + room], KINDS.index("text"))]))
    return Corpus(tuple(texts), ())


@dataclass(frozen=True)
class Batch:
    """Some texts (``rows``: which, ``lengths`` in tokens, padded on the right) with the residual stream after each
    layer; ``kind`` is -1 where a token is not counted."""

    rows: list[int]
    lengths: list[int]
    ids: Int[Tensor, "row pos"]
    kind: Int[Tensor, "row pos"]
    residual: dict[int, Float[Tensor, "row pos d_model"]]

    def counted(self, sae: ResidualSAE, limit: float | None) -> Bool[Tensor, "row pos"]:
        """Tokens with a kind and, for SAEs with a norm filter, of a norm up to ``limit``."""
        return (self.kind >= 0) & sae.fits_norm(self.residual[sae.layer], limit)


def residual_batches(model: AlignedModel, texts: Sequence[Text], layers: set[int]) -> Iterator[Batch]:
    """The residual stream of the unsteered model over all texts, texts of similar length together."""
    decoder = find_decoder(model.model)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i].ids), i))
    while order:
        count = max(1, _TOKENS_A_BATCH // len(texts[order[0]].ids))
        rows, order = order[:count], order[count:]
        ids, mask = pad_rows([texts[r].ids for r in rows], model.chat.pad_id, side="right", device=model.device)
        kind, _ = pad_rows([texts[r].kinds for r in rows], NOT_COUNTED, side="right", device=model.device)
        with torch.no_grad():
            residual = early_residuals(decoder, layers, ids, mask)
        yield Batch(rows, [len(texts[r].ids) for r in rows], ids, kind, residual)


class Measurement:
    """What one SAE does on the texts, added up batch by batch.

    ``active``: [kind, d_sae], tokens of each kind on which a latent fires; ``tokens``: [kind]; ``skipped``: tokens
    that the SAE's norm filter (``limit``) leaves out.
    """

    def __init__(self, sae: ResidualSAE, n_kinds: int, limit: float | None = None) -> None:
        self.sae, self.limit = sae, limit
        self.active = torch.zeros(n_kinds, sae.d_sae, dtype=torch.float64)
        self.tokens = torch.zeros(n_kinds, dtype=torch.long)
        self.skipped = 0
        self._error = 0.0
        self._sum = torch.zeros(sae.d_model, dtype=torch.float64)
        self._squares = 0.0

    def add(self, batch: Batch) -> None:
        """Count one batch."""
        counted = batch.counted(self.sae, self.limit)
        self.skipped += int((batch.kind >= 0).sum() - counted.sum())
        kind, order = batch.kind[counted].sort(stable=True)
        residual = batch.residual[self.sae.layer][counted][order].float()
        if len(residual) == 0:
            return
        self.active += self.sae.encoder.counts(residual, kind, len(self.tokens)).double().cpu()
        self.tokens += kind.bincount(minlength=len(self.tokens)).cpu()
        rebuilt, _ = reconstruct(self.sae, residual)
        self._error += float((rebuilt - residual).double().pow(2).sum())
        self._sum += residual.double().sum(0).cpu()
        self._squares += float(residual.double().pow(2).sum())

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of all counted tokens on which each latent fires."""
        return (self.active.sum(0) / self.tokens.sum().clamp(min=1)).float()

    @property
    def density_by_kind(self) -> Float[Tensor, "kind d_sae"]:
        """The same within each kind; NaN for a kind without tokens."""
        return (self.active / self.tokens[:, None]).float()

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a token."""
        return float(self.active.sum() / self.tokens.sum())

    @property
    def explained_variance(self) -> float:
        """1 - squared error of the reconstruction / variance of the residual stream around its mean."""
        variance = self._squares - float(self._sum.pow(2).sum()) / int(self.tokens.sum())
        return 1 - self._error / variance
