"""reports.view.traces: traces of a run's answers, by the artifacts and triples that its folder names."""

import json
import shutil
from dataclasses import replace

import pytest

from harness.files import write_jsonl
from harness.model.aligned import AlignedModel
from reports.run import read_run
from reports.view.traces import Tracer, conversation_of, triples_of
from tests.unit.test_dspa import fit
from tests.unit.traced_run import ASKED, CELL, write_traced_run


@pytest.fixture(scope="module")
def model(tiny_base, triples, sae_refs):
    return fit(tiny_base("llama"), triples, sae_refs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, triples):
    return write_traced_run(tmp_path_factory.mktemp("traces") / "run", model, triples)


def cell_of(folder, name=CELL):
    run = read_run(folder)
    return run, next(cell for cell in run.cells if cell.planned.name == name)


def traced(folder, item, tracer=None, name=CELL):
    run, cell = cell_of(folder, name)
    return (tracer or Tracer()).trace(run, cell, run.metrics["mt_bench"], "mt_bench", item)


@pytest.mark.parametrize("item", ASKED)
def test_a_trace_is_that_of_the_stored_answer_in_its_whole_conversation(folder, model, item):
    run, cell = cell_of(folder)
    records, store = cell.records["mt_bench"], cell.folder.answers("mt_bench")
    (record,) = [record for record in records if record.item == item]
    asked = conversation_of(records, record, run.metrics["mt_bench"], store)
    assert len(asked) == (3 if item.endswith(":2") else 1)
    answer = store[record.raw["answer_key"]]
    expected, found = model.trace(asked, answer), traced(folder, item)
    assert "".join(found["tokens"]).startswith(answer.text.split()[0]) and len(found["tokens"]) == len(answer.token_ids)
    assert found["sizes"] == pytest.approx(expected.size.tolist(), abs=1e-4)
    assert found["latents"] == list(expected.latents)
    for token, edits in enumerate(found["edits"]):
        named = [(found["latents"][k], before, change) for k, before, change in edits]
        assert named == [pytest.approx(edit, abs=1e-3) for edit in expected.edits(token)]
    assert any(found["edits"])
    json.dumps(found, allow_nan=False)


def test_messages_that_a_record_keeps_come_before_its_prompt(folder):
    run, cell = cell_of(folder)
    (record,) = [record for record in cell.records["mt_bench"] if record.item == "83:1"]
    earlier = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    asked = conversation_of([], replace(record, raw=record.raw | {"earlier": earlier}), run.metrics["mt_bench"], None)
    assert [message["content"] for message in asked] == ["w5", "w6", ASKED["83:1"]]


def test_snippets_are_of_the_cells_own_triples(folder, triples):
    run, cell = cell_of(folder)
    tracer = Tracer()
    latent = next(k for k in tracer.trace(run, cell, run.metrics["mt_bench"], "mt_bench", "83:1")["latents"])
    found = tracer.snippets(run, cell, latent)
    assert found["triples"] == len(triples) and 0 < len(found["snippets"]) <= 5
    assert all("[[" in snippet["text"] for snippet in found["snippets"])
    assert {t.key for t in triples_of(run, cell)} == {t.key for t in triples}
    with pytest.raises(ValueError, match="has no latent 100000"):
        tracer.snippets(run, cell, 100_000)


def test_what_cannot_be_traced_says_why(folder, tmp_path, tiny_folders, model):
    with pytest.raises(ValueError, match="no stored answer to item '85:1'"):
        traced(folder, "85:1")
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(copy / "cells" / CELL / "artifact")
    with pytest.raises(ValueError, match="has no artifact any more"):
        traced(copy, "83:1")
    moved = shutil.copytree(tiny_folders["llama"], tmp_path / "base")
    AlignedModel.load(folder / "cells" / CELL / "artifact", base=moved).save(copy / "cells" / CELL / "artifact")
    shutil.rmtree(moved)
    with pytest.raises(ValueError, match=r"its base is not at .* --base FOLDER"):
        traced(copy, "83:1")
    given = Tracer(base=str(tiny_folders["llama"]), saes={"output_sae": str(tiny_folders["output"]), "unused": "x"})
    assert traced(copy, "83:1", given) == traced(folder, "83:1")
    environment = json.loads((copy / "environment.json").read_text())
    environment["base"]["path"] = str(tiny_folders["llama"])
    (copy / "environment.json").write_text(json.dumps(environment))
    assert traced(copy, "83:1") == traced(folder, "83:1"), "the run folder knows where its base is"


def test_a_conversation_that_is_not_all_there_is_not_traced_as_if_it_were(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    file = copy / "cells" / CELL / "records" / "mt_bench.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_jsonl(file, [row for row in rows if row["item"] != "83:1"])
    with pytest.raises(ValueError, match="earlier turns are missing"):
        traced(copy, "83:2")


def test_triples_that_changed_give_no_passages(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    lines = (copy / "triples.jsonl").read_text().splitlines(keepends=True)
    (copy / "triples.jsonl").write_text("".join(lines[1:]))
    run, cell = cell_of(copy)
    with pytest.raises(ValueError, match="not the triples that the run was made on"):
        Tracer().snippets(run, cell, 0)


def test_a_few_artifacts_are_kept_and_their_base_is_shared(folder, model, monkeypatch):
    run, cell = cell_of(folder)
    tracer = Tracer()
    monkeypatch.setattr("reports.view.traces.KEPT", 1)
    for name in ("dspa__n300__s1", "dspa__n300__s2"):
        other = run.folder / "cells" / name / "artifact"
        model.save(other)
    cells = [
        next(c for c in run.cells if c.planned.name == name) for name in ("dspa__n300__s1", "dspa__n300__s2", CELL)
    ]
    loaded = [tracer._model(run, cell) for cell in cells]
    assert len(tracer._models) == 1 and len({id(one.base) for one in loaded}) == 1
    assert tracer._model(run, cell) is loaded[-1]
