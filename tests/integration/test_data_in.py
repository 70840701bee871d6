"""Suites on other people's preference data, and on data and prompts that do not fit the model's context."""

import json

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.data.refs import ModelRef
from harness.data.triples import TripleFile, conversation, load_triples, triples_hash
from harness.experiment.room import Room
from harness.experiment.run import prepare, run_suite
from harness.run_folder import RunFolder
from tests.toys import NoProgress, write_suite

ONE = {"seeds": 1, "budgets": [4], "judge": None, "report": None}
ONE |= {"variants": [{"name": "noise", "method": "toy_noise"}]}
EVENNESS = [{"name": "toy_bench", "questions": "questions.jsonl"}]
LONG = "w1 " * 300
"""More than the 256 tokens of the tiny model's context."""


@pytest.fixture(scope="module")
def tiny_base_path(tiny_folders):
    return tiny_folders["llama"]


def suite(folder, base, **changes):
    return write_suite(folder, base, **(ONE | {"benchmarks": EVENNESS} | changes))


def held_out(folder, rows):
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "preference", "triples": "heldout.jsonl"}


def as_implicit(row):
    turn = {"role": "user", "content": row["prompt"]}
    return {key: [turn, {"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")}


def test_a_suite_runs_on_trls_implicit_form_in_parquet_as_on_our_own(tmp_path, tiny_base_path):
    from datasets import Dataset

    folder = tmp_path / "suite"
    ours = prepare(suite(folder, tiny_base_path), tmp_path / "ours")
    rows = [json.loads(line) for line in (folder / "triples.jsonl").read_text().splitlines()]
    Dataset.from_list([as_implicit(row) for row in rows]).to_parquet(folder / "pairs.parquet")
    theirs = prepare(suite(folder, tiny_base_path, triples={"path": "pairs.parquet"}), tmp_path / "theirs")
    assert theirs.identity == ours.identity
    assert run_suite(theirs, NoProgress()) == {}
    assert run_suite(ours, NoProgress()) == {}
    states = [RunFolder.open(tmp_path / name).cell("noise__n4__s0").state for name in ("ours", "theirs")]
    assert all(state is not None and state.files for state in states)
    ours, theirs = (state and state.model_copy(update={"files": None}) for state in states)  # which have times in them
    assert ours == theirs
    assert not (tmp_path / "ours" / "left_out.json").exists()


def add_long_triples(folder):
    with (folder / "triples.jsonl").open("a") as file:
        for number in range(4):
            file.write(json.dumps({"prompt": f"w{number} {LONG}", "chosen": "w2", "rejected": "w3"}) + "\n")


def test_triples_that_do_not_fit_are_counted_and_refused_before_any_work(tmp_path, tiny_base_path):
    path = suite(tmp_path / "suite", tiny_base_path)
    add_long_triples(tmp_path / "suite")
    with pytest.raises(
        ValueError, match="4 of 16 triples do not fit the context of 256 tokens: lines 13, 14, 15 and 1"
    ):
        prepare(path, tmp_path / "run")
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run"), "--dry-run"])
    assert "leave them out with `too_long: skip` under `triples:`" in str(done.exception or done.output)
    assert not (tmp_path / "run").exists()


def test_triples_that_do_not_fit_are_left_out_named_and_the_cell_is_complete(tmp_path, tiny_base_path):
    path = suite(
        tmp_path / "suite", tiny_base_path, triples={"path": "triples.jsonl", "too_long": "skip"}, budgets=[12]
    )
    fitting = triples_hash(load_triples(tmp_path / "suite" / "triples.jsonl"))
    add_long_triples(tmp_path / "suite")
    prepared = prepare(path, tmp_path / "run")
    assert triples_hash(prepared.checked.triples) == fitting
    assert run_suite(prepared, NoProgress()) == {}
    run = RunFolder.open(tmp_path / "run")
    assert run.cell("noise__n12__s0").failures(["toy_bench"]) == []
    assert [item.place for item in run.left_out.triples] == [f"line {number}" for number in (13, 14, 15, 16)]
    assert {item.tokens > 256 for item in run.left_out.triples} == {True}
    assert run.environment.triples.n == 12
    (note,) = (note for note in run.environment.notes if "do not fit" in note)
    assert note.endswith("are left out (`too_long: skip` under `triples:`): lines 13, 14, 15, 16")


def test_a_budget_counts_only_triples_that_fit(tmp_path, tiny_base_path):
    path = suite(
        tmp_path / "suite", tiny_base_path, triples={"path": "triples.jsonl", "too_long": "skip"}, budgets=[13]
    )
    add_long_triples(tmp_path / "suite")
    with pytest.raises(ValueError, match=r"budget 13 is larger than the data: .* has 12 triples"):
        prepare(path, tmp_path / "run")


ROWS = [{"prompt": f"w{n} w40", "chosen": "w1", "rejected": "w2"} for n in range(50, 54)]
ROWS.insert(1, {"prompt": f"w49 {LONG}", "chosen": "w1", "rejected": "w2"})


def test_prompts_that_do_not_fit_are_refused_or_left_out_and_then_no_cell_fails(tmp_path, tiny_base_path):
    folder = tmp_path / "suite"
    folder.mkdir()
    benchmark = held_out(folder, ROWS)
    with pytest.raises(ValueError, match=r"benchmarks\[0\]: 1 of 5 prompts of preference do not fit .* line 2"):
        prepare(suite(folder, tiny_base_path, benchmarks=[benchmark]), tmp_path / "run")
    prepared = prepare(suite(folder, tiny_base_path, benchmarks=[benchmark | {"too_long": "skip"}]), tmp_path / "run")
    assert prepared.checked.prompts == {"preference": 4}
    assert run_suite(prepared, NoProgress()) == {}
    run = RunFolder.open(tmp_path / "run")
    records = run.cell("noise__n4__s0").records("preference") or ()
    assert sorted({record.item for record in records}) == ["1", "3", "4", "5"]
    assert all(record.error is None for record in records)
    assert [(item.name, item.place) for item in run.left_out.benchmarks["preference"]] == [("2", "line 2")]
    assert any("1 of 5 prompts of preference" in note and "line 2" in note for note in run.environment.notes)
    again = prepare(suite(folder, tiny_base_path, benchmarks=[benchmark | {"too_long": "skip"}]), tmp_path / "run")
    assert again.failures == {}


def test_a_run_that_could_never_be_complete_is_completed_by_leaving_out(tmp_path, tiny_base_path, monkeypatch):
    """As of before prompts were checked: a cell with records that failed for their length."""
    from harness.experiment import check

    folder = tmp_path / "suite"
    folder.mkdir()
    benchmark = held_out(folder, ROWS)
    path = suite(folder, tiny_base_path, benchmarks=[benchmark])
    with monkeypatch.context() as old:
        old.setattr(check, "fitting_benchmark", lambda name, benchmark, room: (benchmark, [], None))
        assert "2 of 10 records failed" in run_suite(prepare(path, tmp_path / "run"), NoProgress())["noise__n4__s0"][0]
    skipping = suite(folder, tiny_base_path, benchmarks=[benchmark | {"too_long": "skip"}])
    assert run_suite(prepare(skipping, tmp_path / "run"), NoProgress()) == {}


def test_other_prompts_left_out_make_another_run(tmp_path, tiny_base_path):
    """An instruction of a variant added later would leave out more than the cells that are there did."""
    folder = tmp_path / "suite"
    folder.mkdir()
    benchmark = held_out(folder, [*ROWS, {"prompt": "w7 " * 230, "chosen": "w1", "rejected": "w2"}]) | {
        "too_long": "skip"
    }
    assert (
        run_suite(prepare(suite(folder, tiny_base_path, benchmarks=[benchmark]), tmp_path / "run"), NoProgress()) == {}
    )
    prompt = {"name": "prompt", "method": "prompt", "params": {"instruction": "w3 " * 30}}
    path = suite(folder, tiny_base_path, benchmarks=[benchmark], variants=[*ONE["variants"], prompt])
    with pytest.raises(ValueError, match=r"left_out\.preference\.prompts"):
        prepare(path, tmp_path / "run")


def test_where_nothing_fits_skipping_is_refused(tmp_path, tiny_base_path):
    folder = tmp_path / "suite"
    folder.mkdir()
    benchmark = held_out(folder, ROWS[1:2]) | {"too_long": "skip"}
    with pytest.raises(ValueError, match=r"1 of 1 prompts of preference do not fit.* take a base model with a longer"):
        prepare(suite(folder, tiny_base_path, benchmarks=[benchmark]), tmp_path / "run")


def test_mt_bench_counts_both_answers_and_names_the_most_tokens_that_fit(tiny_base_path, tmp_path):
    from harness.experiment.room import fitting_benchmark
    from tasks.mt_bench import MTBench

    questions = [{"question_id": n, "category": "writing", "turns": ["w1 " * n, "w2"]} for n in (5, 60, 120)]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    room = Room.of(ModelRef(path=str(tiny_base_path)))
    benchmark = MTBench(questions=path, max_new_tokens=80)
    long = room.long_items(benchmark.items())
    with pytest.raises(ValueError, match=r"worst case of every turn.*: question 120; .*set max_new_tokens to at"):
        fitting_benchmark("mt_bench", benchmark, room)
    assert [item.name for item in long] == ["120"]
    turns = [("user", "w1 " * 120), ("assistant", ""), ("user", "w2")]
    prompt = room.prompt_tokens(tuple({"role": role, "content": text} for role, text in turns))
    assert long[0].tokens == prompt + 2 * 80
    most = room.largest_answer(benchmark.items())
    assert room.long_items(MTBench(questions=path, max_new_tokens=most).items()) == []
    assert room.long_items(MTBench(questions=path, max_new_tokens=most + 1).items()) != []
    kept, _, note = fitting_benchmark("mt_bench", benchmark.model_copy(update={"too_long": "skip"}), room)
    assert len(kept.prompts()) == 4
    assert note is not None and note.endswith("are left out (too_long: skip): question 120")


def test_room_agrees_with_what_the_model_itself_refuses(tiny_base, tiny_base_path, tmp_path):
    room = Room.of(ModelRef(path=str(tiny_base_path)))
    rows = [{"prompt": "w1 " * n, "chosen": "w2 " * m, "rejected": "w3"} for n in range(200, 260, 3) for m in (1, 20)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = TripleFile.read(path)
    refused = set()
    for triple in found.triples:
        try:
            tiny_base("llama").triple_ids(triple)
        except ValueError:
            refused.add(triple.key)
    assert {item.name for item in room.long_triples(found)} == refused
    assert 0 < len(refused) < len(rows)
    assert room.excess(conversation("w1"), generated=10**4) == room.prompt_tokens(conversation("w1")) + 10**4


def test_fit_takes_any_form_and_leaves_out_what_does_not_fit(tmp_path, tiny_base_path):
    rows = [{"prompt": f"w{n}", "chosen": "w1", "rejected": "w2"} for n in range(10, 14)]
    rows.append({"prompt": LONG, "chosen": "w1", "rejected": "w2"})
    (tmp_path / "pairs.json").write_text(json.dumps([as_implicit(row) for row in rows]))
    command = ["fit", "sft", "--base", str(tiny_base_path), "--triples", str(tmp_path / "pairs.json")]
    command += ["--out", str(tmp_path / "sft")]
    refused = CliRunner().invoke(app, command)
    assert "1 of 5 triples do not fit" in str(refused.exception or refused.output)
    assert "leave them out with --too-long skip" in str(refused.exception or refused.output)
    done = CliRunner().invoke(app, [*command, "--too-long", "skip", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "sft" / "aligned.json").read_text())["base"]["dtype"] == "bfloat16"
    assert "are left out (--too-long skip): row 5" in done.output
    assert "sft on 4 triples" in done.output
