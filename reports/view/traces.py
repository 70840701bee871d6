"""Traces of steered answers of a run, by the artifacts in its folder: loaded when first asked for, a few kept."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.benchmark import Metric, Record
from harness.data.triples import Conversation, Message, Triple, draw_budget, load_triples, triples_hash
from harness.references import references
from harness.run_folder import RunFolder
from harness.run_folder.answers import AnswerStore
from reports.run import Cell, Run

if TYPE_CHECKING:
    from harness.model.aligned import AlignedModel
    from harness.model.base import BaseModel

KEPT = 3
"""Artifacts held in memory at once; their base is shared."""
TRIPLES = 100
"""The first of a cell's training triples, which passages are looked for in."""
SNIPPETS = 5
"""Passages shown for a latent."""


class Tracer:
    """``base`` and ``saes`` say where base and SAEs are now, where they moved (as in `AlignedModel.load`)."""

    def __init__(self, *, base: str | None = None, saes: Mapping[str, str] | None = None, device: str = "cpu") -> None:
        self._base, self._saes, self._device = base, saes or {}, device
        self._lock = threading.Lock()  # a model is steered by one session at a time
        self._bases: dict[str, BaseModel] = {}
        self._models: OrderedDict[Path, AlignedModel] = OrderedDict()
        self._snippets: dict[Path, dict[int, list[dict[str, Any]]]] = {}

    def trace(self, run: Run, cell: Cell, metric: Metric, benchmark: str, item: str) -> dict[str, Any]:
        """The trace of the answer that a record is about, as JSON: ``tokens``, ``sizes`` of what was added (shares of
        the residual stream), ``latents`` that the prompt selected (null where latents are not what is edited), and
        ``edits``: for each token [index of the latent, activation, change], the largest change first.

        ValueError for an answer that is not in the store, one that nothing steered, an artifact, base or SAE that is
        not there any more or not what it was, and a prompt that the run folder does not keep whole.
        """
        from harness.model.intervention import EditsLatents

        records = [record for record in cell.records.get(benchmark, ()) if record.metric == metric.name]
        record = next((record for record in records if record.item == item), None)
        if record is None or record.raw.get("answer_key") is None:
            raise ValueError(f"cell {cell.planned.name} has no stored answer to item {item!r} of {metric.name}")
        store = cell.folder.answers(benchmark)
        answer = store[record.raw["answer_key"]]
        asked = conversation_of(records, record, metric, store)
        with self._lock:
            model = self._model(run, cell)
            if len(model.prompt_ids(asked)) != answer.prompt_tokens:
                raise ValueError(
                    f"the model was asked with {answer.prompt_tokens} tokens, and what the run folder keeps of the "
                    f"conversation makes {len(model.prompt_ids(asked))}: earlier turns are missing, so that the "
                    "condition cannot be computed again"
                )
            found = model.trace(asked, answer)
            edits_latents = isinstance(model.intervention, EditsLatents)
        place = {latent: k for k, latent in enumerate(found.latents)}
        return {
            "tokens": list(found.tokens),
            "sizes": [round(size, 5) for size in found.size.tolist()],
            "latents": list(found.latents) if edits_latents else None,
            "edits": [
                [[place[latent], round(before, 4), round(change, 4)] for latent, before, change in found.edits(token)]
                for token in range(len(found.tokens))
            ],
        }

    def snippets(self, run: Run, cell: Cell, latent: int) -> dict[str, Any]:
        """``snippets``: the passages of the cell's own training triples on which a latent fires most, as
        `EditsLatents.snippets` has them; ``triples``: how many were looked through. ValueError as `trace`, for
        triples that are not there any more, and for a latent that the SAE does not have."""
        from harness.model.intervention import EditsLatents

        with self._lock:
            model = self._model(run, cell)
            steering = model.intervention
            if not isinstance(steering, EditsLatents):
                raise ValueError(f"method {cell.planned.method!r} edits no latents of an SAE")
            triples = [triple for triple in triples_of(run, cell) if _fits(model, triple)]
            if latent >= steering.d_sae:
                raise ValueError(f"the SAE of cell {cell.planned.name} has no latent {latent}: {steering.d_sae} in all")
            known = self._snippets.setdefault(cell.folder.path, {})
            if latent not in known:
                known |= steering.snippets(model, triples, [latent], SNIPPETS)
            return {"snippets": known[latent], "triples": len(triples)}

    def _model(self, run: Run, cell: Cell) -> "AlignedModel":
        from harness.model.aligned import AlignedModel
        from harness.model.artifact import read_description

        path = cell.folder.artifact
        if path in self._models:
            self._models.move_to_end(path)
            return self._models[path]
        if not path.is_dir():
            raise ValueError(f"cell {cell.planned.name} has no artifact any more: run the suite again to make it")
        description = read_description(path)
        if description["intervention"] is None:
            raise ValueError(f"nothing steers the model of cell {cell.planned.name}, so there are no edits to trace")
        base = str(description["base"]["hash"])
        moved, saes = self._moved(RunFolder(run.folder), cell, description)
        model = AlignedModel.load(path, base=self._bases.get(base, moved), saes=saes, device=self._device)
        if cell.state.fingerprint not in (None, model.fingerprint):
            raise ValueError(f"cell {cell.planned.name}: its artifact is another than the one that gave these answers")
        self._bases.setdefault(base, model.base)
        self._models[path] = model
        while len(self._models) > KEPT:
            self._models.popitem(last=False)
        return model

    def _moved(self, folder: RunFolder, cell: Cell, description: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
        """(base, name -> SAE) as `AlignedModel.load` is told of them: as given, else by the run folder's own paths
        where the artifact's lead nowhere: whoever moves a run may move what it was made with alike."""

        def found(was: str | None, here: str | None) -> str | None:
            lost = was is not None and not Path(was).exists()
            return str(folder.path / here) if lost and here is not None and (folder.path / here).exists() else None

        environment, saes = folder.environment, {}
        for name, ref in references(description["intervention"]["params"]):
            entry = environment.saes.get(str(cell.planned.params.get(name)))
            if place := self._saes.get(name) or found(ref["path"], entry and entry.path):
                saes[name] = place
        return self._base or found(description["base"]["path"], environment.base.path), saes


def conversation_of(records: Iterable[Record], record: Record, metric: Metric, store: AnswerStore) -> Conversation:
    """What the model was asked for ``record``: its prompt behind the ``earlier`` messages that it keeps, or behind the
    earlier turns of the same cluster and the answers to them, where records have a ``turn``."""
    messages: list[Message] = [Message(**message) for message in record.raw.get("earlier", ())]
    if "turn" in record.raw:
        same = [one for one in records if one.cluster == record.cluster and one.raw.get("turn", 0) < record.raw["turn"]]
        for turn in sorted(same, key=lambda one: one.raw["turn"]):
            messages.append(Message(role="user", content=_prompt(turn, metric)))
            messages.append(Message(role="assistant", content=store[turn.raw["answer_key"]].text))
    return (*messages, Message(role="user", content=_prompt(record, metric)))


def _prompt(record: Record, metric: Metric) -> str:
    keys = [metric.sample.prompt] if metric.sample else []
    found = next((record.raw[key] for key in (*keys, "prompt", "instruction") if key in record.raw), None)
    if not isinstance(found, str):
        raise ValueError(f"the record of item {record.item!r} does not say what the model was asked")
    return found


def triples_of(run: Run, cell: Cell) -> tuple[Triple, ...]:
    """The first `TRIPLES` of those that the cell was fitted on; ValueError where they are not what they were."""
    folder = RunFolder(run.folder)  # whose paths are whole, which a report's are not
    asked, left_out = folder.environment.triples, {one.name for one in folder.left_out.triples}
    path = folder.path / asked.path
    triples = [triple for triple in load_triples(path) if triple.key not in left_out]
    if triples_hash(triples) != asked.hash:
        raise ValueError(f"{path}: these are not the triples that the run was made on any more")
    budget = cell.planned.budget
    size = min(budget if isinstance(budget, int) else TRIPLES, TRIPLES, len({triple.key for triple in triples}))
    return draw_budget(triples, size, seed=folder.plan.seed + cell.planned.seed).triples


def _fits(model: "AlignedModel", triple: Triple) -> bool:
    try:
        return bool(model.triple_ids(triple))
    except ValueError:  # too long: the run's fit leaves it out, too
        return False
