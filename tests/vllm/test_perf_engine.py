"""`dspa-bench perf engine`: every candidate answers the same prompts with as many tokens."""

import json
import random

import pytest

from dspa.perf.engine import OWN_SETS, TRANSFORMERS, VLLM_PLAIN, EngineOptions, measure_engine
from dspa.perf.subject import Given
from tests.conftest import make_sae

pytestmark = pytest.mark.vllm


def test_all_candidates_are_compared_on_equal_work(wide_folder, tmp_path):
    words, draw = [f"w{n}" for n in range(40)], random.Random(0)
    texts = tmp_path / "triples.jsonl"
    rows = [
        {
            "prompt": " ".join(draw.choices(words, k=5)),
            "chosen": " ".join(draw.choices(words[:20], k=4)),
            "rejected": " ".join(draw.choices(words[20:], k=4)),
        }
        for _ in range(50)
    ]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    saes = [str(make_sae(tmp_path / str(layer), layer, seed=layer, d_in=64)) for layer in (1, 2)]
    options = EngineOptions(
        Given(str(wide_folder), saes[0], saes[1], str(texts)), rounds=2, batches=(1, 3), tokens=5, warmup=0
    )
    sections = measure_engine(options, tell=lambda line: None)
    assert [section.title for section in sections] == ["1 prompts at once", "3 prompts at once"]
    for section in sections:
        compared = {(line.what, line.against): line.ratio for line in section.lines}
        assert all(ratio.median > 0 for ratio in compared.values())
        assert {(OWN_SETS, VLLM_PLAIN), (VLLM_PLAIN, TRANSFORMERS)} < compared.keys()
        assert {figure.what for figure in section.figures} >= {TRANSFORMERS, VLLM_PLAIN, OWN_SETS}
