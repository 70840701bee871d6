"""An interrupted ``eval`` goes on where it was: nothing is paid for twice, and what is damaged is made again."""

import json

import pytest

from harness.experiment import cell as cell_module
from harness.run_folder import CellFolder
from tests.judge_server import serving
from tests.toys import ToyBench, write_suite


@pytest.fixture
def suite(tmp_path, tiny_folders):
    """Of a judge's address: a suite whose first benchmark is paid for."""

    def make(url: str):
        questions = [{"question_id": n, "category": "writing", "turns": [f"w{n} w1", f"w{n} w2"]} for n in (81, 82)]
        path = write_suite(
            tmp_path / "suite",
            tiny_folders["llama"],
            judge={"kind": "openai", "base_url": url, "model": "judge", "price_in": 100.0, "price_out": 1000.0},
            benchmarks=[
                {"name": "mt_bench", "questions": "mt.jsonl", "temperatures": 1.0, "max_new_tokens": 6},
                {"name": "toy_bench", "questions": "questions.jsonl"},
                {"name": "toy_bench", "as": "more", "questions": "questions.jsonl"},
            ],
        )
        (path.parent / "mt.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
        return path

    return make


def test_an_interrupted_eval_goes_on_and_pays_for_nothing_twice(tmp_path, tiny_folders, suite, call, monkeypatch):
    artifact, out = tmp_path / "artifact", tmp_path / "eval"
    fit = ("toy_noise", "--base", tiny_folders["llama"], "--param", "scale=0.2", "--out", artifact)
    evaluate, interrupted = cell_module.evaluate, []

    def once(aligned, name, *rest, **settings):
        if name == "toy_bench" and not interrupted:
            interrupted.append(name)
            raise ValueError("the lights went out")
        evaluate(aligned, name, *rest, **settings)

    monkeypatch.setattr(cell_module, "evaluate", once)
    with serving(lambda words: f"[[{1 + len(words) % 9}]]") as server:
        path = suite(server.url)
        assert call("fit", *fit, "--triples", path.parent / "triples.jsonl")[0] == 0
        command = ("eval", artifact, "--suite", path, "--out", out)
        out.mkdir()
        (out / ".lock").touch()  # all that one leaves which is killed before it has begun
        code, _, err = call(*command)
        assert (code, "the lights went out" in err) == (2, True)
        asked = sum(server.seen.values())
        assert asked == 4
        code, text, _ = call(*command)
        assert (code, "mt_bench: there already" in text, sum(server.seen.values())) == (0, True, asked)
        whole = {path.name: path.read_bytes() for path in (out / "records").iterdir()}
        records = out / "records" / "mt_bench.jsonl"
        records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:-1]))
        code, text, _ = call(*command)
        assert (code, "mt_bench ..." in text, sum(server.seen.values())) == (0, True, asked)
        assert {path.name: path.read_bytes() for path in (out / "records").iterdir()} == whole
        assert len(CellFolder(out).records("mt_bench") or ()) == 4
        # What is made again takes its own files with it, and not those of the same benchmark's other entry.
        monkeypatch.setattr(ToyBench, "files", "toys")
        for name in ("toys", "more"):
            (out / name).mkdir()
        (out / "records" / "more.jsonl").unlink()
        assert call(*command)[0] == 0
        assert ((out / "toys").is_dir(), (out / "more").is_dir()) == (True, False)
        assert {path.name: path.read_bytes() for path in (out / "records").iterdir()} == whole
        code, _, err = call(*command, "--set", "seed=6")
        assert (code, "suite.seed: 5 there, 6 here" in err) == (2, True)
        (out / "identity.json").write_text("{}}")
        code, _, err = call(*command)
        assert (code, "identity.json" in err, "or give another --out" in err) == (2, True, True)
