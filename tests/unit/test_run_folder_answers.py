"""The store of answers: appended by batch, whole batches or none, and whoever asks again is given what is there."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

import harness.model.aligned
from dspa.method import DSPA
from harness.benchmark import BenchmarkConfig, Metric, Record
from harness.compute import Meter
from harness.data.triples import conversation
from harness.experiment.cell import evaluate
from harness.model.generation import Batch
from harness.responder import Completion
from harness.run_folder.answers import AnswerStore, answer_key
from harness.run_folder.cell import CellFolder
from harness.seals import sealed_line
from tasks.alpaca_eval import AlpacaEval
from tasks.mt_bench import MTBench
from tasks.safety import Safety
from tests.unit.scripted import ScriptedJudge, ScriptedModel

ANSWERS = [Completion(f"one\u2028{i}", (i, i + 1), 3, 2, True) for i in range(5)]
BATCHES = [({"a": ANSWERS[0], "b": ANSWERS[1]}, {"edits": 0.1}), ({"c": ANSWERS[2]}, None), ({"d": ANSWERS[3]}, {})]

NAMELESS = '{"text": "x", "token_ids": [], "prompt_tokens": 1, "steered_tokens": 0, "finished": true}'


@pytest.fixture
def path(tmp_path) -> Path:
    store = AnswerStore(tmp_path / "answers" / "bench.jsonl")
    for answers, tally in BATCHES:
        store.append(answers, tally)
    return store.path


def test_what_was_appended_is_found_by_its_key_now_and_by_the_next_who_opens_the_file(path):
    for store in (AnswerStore(path), AnswerStore(path)):
        assert (store.get("b"), store["b"].text) == (ANSWERS[1], "one\u20281")
        assert store.get("b").key == "b"
        assert store.get("e") is None
        with pytest.raises(ValueError, match=r"bench\.jsonl: there is no answer with the key 'e'"):
            store["e"]
        assert store.tallies({"a", "b", "c"}) == [{"edits": 0.1}]
        assert store.tallies({"d", "a"}) == [{"edits": 0.1}, {}]
        store.append({}, None)


def test_edited_parts_come_back_and_answers_of_before_they_were_noted_have_none(path):
    edited = replace(ANSWERS[4], edited=((0, 2), (3, 4)))
    AnswerStore(path).append({"e": edited}, None)
    lines = path.read_text().splitlines()
    with path.open("a") as file:
        file.write(sealed_line(json.loads(NAMELESS) | {"key": "f"}).decode())
        file.write(sealed_line({"batch": 1, "tally": None}).decode())
    found = AnswerStore(path)
    assert found["e"].edited == ((0, 2), (3, 4)) and found["f"].edited is None and len(lines) == 9


def test_a_store_that_is_not_there_is_empty_and_makes_no_file(tmp_path):
    store = AnswerStore(tmp_path / "bench.jsonl")
    assert (store.get("a"), store.tallies({"a"})) == (None, [])
    assert list(tmp_path.iterdir()) == []


def test_appending_leaves_what_is_there_as_it_is(path):
    before = path.read_bytes()
    AnswerStore(path).append({"e": ANSWERS[4]}, None)
    assert path.read_bytes().startswith(before)
    assert len(path.read_text().splitlines()) == 4 + 3 + 2, "a line an answer and a line a batch, for every reader"


def test_cut_at_any_byte_it_has_the_batches_that_are_whole_and_can_be_gone_on_with(path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # most of the time, and no power is cut here
    whole = path.read_bytes()
    ends = [
        end
        for end in range(len(whole) + 1)
        if whole[:end].endswith(b"}\n") and b'"batch"' in whole[:end].split(b"\n")[-2]
    ]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        store = AnswerStore(path)
        for index, (answers, _) in enumerate(BATCHES):
            assert [store.get(key) is not None for key in answers] == [index < complete] * len(answers)
        for answers, tally in BATCHES[complete:]:
            store.append(answers, tally)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "text", "complaint"),
    [
        (1, "{", "bench.jsonl:1: damaged: Expecting property name"),
        (2, "[]", "bench.jsonl:2: damaged: "),
        (2, '{"key": "b", "text": "x"}', "bench.jsonl:2: damaged: 'token_ids'"),
        (2, NAMELESS, "bench.jsonl:2: damaged: 'key'"),
        (2, "", "bench.jsonl:2: damaged: Expecting value"),
        (3, '{"batch": 3, "tally": null}', "bench.jsonl:3: damaged: a batch of 3 answers ends, and 2 are there"),
        (5, '{"batch": 1}', "bench.jsonl:5: damaged: 'tally'"),
    ],
)
def test_a_damaged_line_in_front_of_a_whole_batch_is_refused_with_its_place(path, line, text, complaint):
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="rerun the suite") as caught:
        AnswerStore(path).get("a")
    assert complaint in str(caught.value)


def test_a_key_is_what_decides_an_answer():
    given = {"temperature": 0.5, "seed": 1, "max_new_tokens": 8}
    key = answer_key("f", conversation("w1"), **given)
    assert key == answer_key("f", conversation([{"role": "user", "content": "w1"}]), **given)
    others = [answer_key("g", conversation("w1"), **given), answer_key("f", conversation("w2"), **given)]
    others += [answer_key("f", conversation("w1"), **(given | {name: 2})) for name in given]
    assert len({key, *others}) == 6


SETTINGS = {"max_new_tokens": 8, "temperature": [0.0, 0.7, 0.0, 0.0], "seed": 3}
ASKED = [conversation(text) for text in ("w1", "w1", "w2", "w1")]


def test_what_is_asked_for_twice_is_generated_once_and_what_is_stored_not_at_all(tmp_path):
    model = ScriptedModel(lambda c: f"re: {c[-1]['content']}")
    first = model.stored(tmp_path / "a.jsonl").generate(ASKED, **SETTINGS, batch_size=2)
    assert [completion.text for completion in first] == ["re: w1", "re: w1", "re: w2", "re: w1"]
    assert first[0].key == first[3].key != first[1].key
    (call,) = model.calls
    assert (call["conversations"], call["temperature"]) == (ASKED[:3], [0.0, 0.7, 0.0])
    assert (call["max_new_tokens"], call["seed"], call["batch_size"]) == (8, 3, 2)
    assert model.stored(tmp_path / "a.jsonl").generate(ASKED, **SETTINGS) == first
    model.stored(tmp_path / "a.jsonl").generate([*ASKED, conversation("w3")], max_new_tokens=8, seed=3)
    assert [call["conversations"] for call in model.calls[1:]] == [[conversation("w3")]]
    assert len(model.calls) == 2


def test_an_error_is_no_answer_and_is_tried_again(tmp_path):
    def reply(asked):
        if asked[-1]["content"] == "w2":
            raise ValueError("too long")
        return "w9"

    model = ScriptedModel(reply)
    for calls in (1, 2):
        answers = model.stored(tmp_path / "a.jsonl").generate(ASKED, **SETTINGS)
        assert [completion.error for completion in answers] == [None, None, "too long", None]
        assert answers[2].record_fields == {"answer": None}
        assert len(model.calls) == calls
    assert model.calls[1]["conversations"] == [conversation("w2")]


def test_a_model_in_front_of_no_store_tells_its_answers_text():
    (answer,) = ScriptedModel(lambda _: "w9").generate([conversation("w1")])
    assert answer.record_fields == {"answer": "w9"}
    assert replace(answer, key="k").record_fields.keys() == {"answer_key", "answer_hash"}


def test_answers_that_came_out_otherwise_under_the_same_key_are_not_taken_for_the_same(tmp_path):
    rows = json.dumps({"prompt": "w1"}) + "\n"
    for file in ("harmful", "harmless"):
        (tmp_path / f"{file}.jsonl").write_text(rows)
    benchmark = Safety(harmful=tmp_path / "harmful.jsonl", harmless=tmp_path / "harmless.jsonl")
    judge = ScriptedJudge(harm=lambda r: 1.0, refusal=lambda r: 0.0)
    cell = CellFolder(tmp_path / "cell")
    rest = {"judge": judge, "seed": 1, "folder": cell, "notify": lambda _: None}
    evaluate(ScriptedModel(lambda c: "here"), "safety", benchmark, **rest)  # type: ignore[arg-type]
    cell.answers("safety").path.unlink()
    with pytest.raises(ValueError, match="shown other answers than the first; remove records, answers"):
        evaluate(ScriptedModel(lambda c: "elsewhere"), "safety", benchmark, **rest, again=True)  # type: ignore[arg-type]


def test_a_killed_process_loses_the_batch_it_was_at_and_no_other(tmp_path):
    asked = [conversation(f"w{i}") for i in range(6)]

    class Killed(ScriptedModel):
        def generate_batches(self, conversations, **settings):
            for row in range(len(conversations)):
                if row == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield Batch((row,), tuple(self.generate([conversations[row]], **settings)), None)

    killed = Killed(lambda c: c[-1]["content"])
    work = multiprocessing.get_context("fork").Process(
        target=lambda: killed.stored(tmp_path / "a.jsonl").generate(asked, max_new_tokens=8)
    )
    work.start()
    work.join()
    assert work.exitcode == -signal.SIGKILL
    model = ScriptedModel(lambda c: c[-1]["content"])
    answers = model.stored(tmp_path / "a.jsonl").generate(asked, max_new_tokens=8)
    assert [completion.text for completion in answers] == [f"w{i}" for i in range(6)]
    assert model.calls[0]["conversations"] == asked[4:]


class AnswersAndScores(BenchmarkConfig):
    """Generates in two batches and scores in two."""

    name: ClassVar[str] = "bench"

    @property
    def metrics(self):
        return (Metric(name="tokens", title="Tokens", unit="nats"),)

    def check(self) -> None: ...

    def run(self, model, *, judge, seed, folder=None):
        asked = [conversation(f"w{i} w{i + 1}") for i in range(4)]
        answers = model.generate(asked, max_new_tokens=5, temperature=1.0, seed=seed, batch_size=2)
        requests = [(model.prompt_ids(c), list(a.token_ids)) for c, a in zip(asked, answers, strict=True)]
        scores = model.loglikelihood_tokens(requests, batch_size=2)
        for index, (answer, (score, _)) in enumerate(zip(answers, scores, strict=True)):
            yield Record(str(index), str(index), "tokens", score, raw=answer.record_fields)


def mt_bench(folder: Path) -> MTBench:
    """Two turns of three questions, of the model and of the base model."""
    rows = [{"question_id": i, "category": "writing", "turns": [f"w{i} w9", f"w{i + 1}"]} for i in range(3)]
    questions = folder / "question.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    modes = ("single", "pairwise-baseline")
    return MTBench(questions=questions, modes=modes, max_new_tokens=5, batch_size=2)


@pytest.fixture(scope="module")
def steered(tiny_base, triples, sae_refs):
    base = tiny_base("gemma2")
    method = DSPA(input_sae=sae_refs[0], output_sae=sae_refs[1], percentile=50.0, min_support=1)
    return method.fit(base, triples, meter=Meter(base.model), seed=0)


def outcome(cell: CellFolder, name: str) -> tuple:
    """Records, diagnostics and answers of one benchmark."""
    return cell.records(name), cell.diagnostics(name), cell.answers(name).path.read_bytes()


@pytest.mark.parametrize("name", ["mt_bench", "answers and scores"])
def test_interrupted_at_any_batch_and_resumed_a_benchmark_ends_as_if_it_had_not_been(
    steered, tmp_path, monkeypatch, name
):
    benchmark = mt_bench(tmp_path) if name == "mt_bench" else AnswersAndScores()
    judge = ScriptedJudge(rate=lambda r: 5.0, compare=lambda r: 1.0)
    made: list[str] = []
    stop_at: int | None = None

    def counted(kind, batches):
        def interrupted(*args, **settings):
            for batch in batches(*args, **settings):
                if len(made) == stop_at:
                    raise KeyboardInterrupt
                made.append(kind)
                yield batch

        return interrupted

    for kind in ("generate_batches", "score_batches"):
        monkeypatch.setattr(harness.model.aligned, kind, counted(kind, getattr(harness.model.aligned, kind)))

    def run(cell):
        made.clear()
        evaluate(steered, "bench", benchmark, judge=judge, seed=7, folder=cell, notify=lambda _: None)

    whole = CellFolder(tmp_path / "whole")
    run(whole)
    batches = list(made)
    assert len(batches) >= 4
    figures = whole.diagnostics("bench")
    assert {"jaccard", "edited_share", "sure_share"} <= figures.keys()
    for stop_at in range(len(batches)):
        cell = CellFolder(tmp_path / f"cell {stop_at}")
        with pytest.raises(KeyboardInterrupt):
            run(cell)
        assert cell.records("bench") is None
        assert not (cell.path / "diagnostics").exists()
        asked, stop = made.copy(), stop_at
        stop_at = None
        run(cell)
        assert outcome(cell, "bench") == outcome(whole, "bench")
        answered = asked.count("generate_batches")
        assert made.count("generate_batches") == batches.count("generate_batches") - answered
        stop_at = stop


@pytest.mark.parametrize("name", ["mt_bench", "alpaca_eval", "safety"])
def test_an_answers_text_is_on_disk_in_the_store_and_in_the_evaluators_export(tmp_path, name):
    rows = "".join(json.dumps({"prompt": f"w{i}"}) + "\n" for i in range(2))
    for file in ("harmful", "harmless"):
        (tmp_path / f"{file}.jsonl").write_text(rows)
    references = [{"instruction": f"Say {i}", "output": "a", "generator": "ref"} for i in range(2)]
    (tmp_path / "references.json").write_text(json.dumps(references))
    benchmarks = {
        "mt_bench": mt_bench(tmp_path),
        "alpaca_eval": AlpacaEval(references=tmp_path / "references.json", length_control="off"),
        "safety": Safety(harmful=tmp_path / "harmful.jsonl", harmless=tmp_path / "harmless.jsonl"),
    }
    model = ScriptedModel(lambda c: f"unmistakable {len(c)} {c[-1]['content']}")
    cell = CellFolder(tmp_path / "cell")
    judges = [ScriptedJudge(rate=lambda r: 5.0, compare=lambda r: 1.0, harm=lambda r: 1.0, refusal=lambda r: 0.0)]
    judges.append(ScriptedJudge(rate=lambda r: 6.0, compare=lambda r: 2.0, harm=lambda r: 2.0, refusal=lambda r: 1.0))
    for again, judge in zip((False, True), judges, strict=True):
        settings = {"judge": judge, "seed": 1, "folder": cell, "notify": lambda _: None, "again": again}
        evaluate(model, name, benchmarks[name], **settings)  # type: ignore[arg-type]
    holding = {
        p.relative_to(cell.path) for p in cell.path.rglob("*") if p.is_file() and "unmistakable" in p.read_text()
    }
    store = Path("answers") / f"{name}.jsonl"
    exports = {
        "mt_bench": {f"mt_bench/model_answer/scripted-{letter * 12}.jsonl" for letter in "fb"},
        "alpaca_eval": {"alpaca_eval/model_outputs.json", "alpaca_eval/annotations.json"},
        "safety": set(),
    }
    assert {str(file) for file in holding - {store}} == exports[name]
    assert store in holding
    for folder in (cell, cell.second):
        records = folder.records(name) or ()
        keys = [value for r in records for key, value in r.raw.items() if key.endswith("answer_key")]
        assert len(keys) >= len(records) > 0
        assert all("unmistakable" in cell.answers(name)[key].text for key in keys)
    assert len(model.calls) == len(set(map(str, model.calls))), "the second judge was given what there is"
