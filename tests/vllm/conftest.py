"""Models that vLLM's CPU kernels can run, and an engine for each. Skipped as a whole where vLLM is not installed."""

from pathlib import Path

import pytest

from dspa.method import DSPA
from harness.compute import Meter
from harness.data.refs import ModelRef, SAERef
from harness.engine.engine import Network
from harness.engine.served import Served
from harness.engine.vllm_engine import VLLM
from harness.model.aligned import AlignedModel
from tests.conftest import make_model, make_sae, make_tokenizer

ASSETS = Path(__file__).parents[2] / "tasks" / "sandbox" / "assets"
SMALL = {"kv_cache_gib": 0.05, "max_sequences": 8}


@pytest.fixture(scope="session", autouse=True)
def _vllm():
    pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory):
    """A random Llama with heads of 32, the least that vLLM knows on a CPU."""
    folder = tmp_path_factory.mktemp("wide") / "llama"
    make_model("llama", hidden_size=64, head_dim=32, num_attention_heads=2, num_key_value_heads=1).save_pretrained(
        folder
    )
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide(wide_folder):
    return AlignedModel.from_base(ModelRef(path=str(wide_folder)))


def answered(engine, aligned, conversations, artifact=None, **settings):
    """(answers in order, what steering counted) of ``aligned``, which lies in ``artifact`` if it is not the base."""
    network = Network(aligned.base) if artifact is None else Served.of(aligned, engine, artifact, "cell").network
    batches = list(Served(aligned, engine, network).generate_batches(conversations, **settings))
    found = {row: one for batch in batches for row, one in zip(batch.rows, batch.completions, strict=True)}
    tallies = [batch.tally for batch in batches if batch.tally is not None]
    return [found[row] for row in range(len(conversations))], tallies


def fitted(method, base, triples, folder):
    aligned = method.fit(base, triples, meter=Meter(base.model), seed=0)
    aligned.save(folder)
    return aligned, folder


@pytest.fixture(scope="session")
def on_wide(wide, triples, tmp_path_factory):
    """DSPA on the random Llama, whose condition is the last turn's; it goes on to the end of the context."""
    root = tmp_path_factory.mktemp("wide")
    read, write = (SAERef(path=str(make_sae(root / str(layer), layer, seed=layer, d_in=64))) for layer in (1, 2))
    method = DSPA(input_sae=read, output_sae=write, percentile=50.0, min_support=1, condition="last_turn", alpha=0.5)
    return fitted(method, wide, triples, root / "dspa")


@pytest.fixture(scope="session")
def start():
    """start(**settings) -> a small engine; all are ended after the tests."""
    begun = []

    def start(**settings):
        begun.append(VLLM(**(SMALL | settings)).start(ModelRef(path="."), device="cpu", threads=1))
        return begun[-1]

    yield start
    for one in begun:
        one.end()


@pytest.fixture(scope="session")
def engine(start):
    """One engine for many tests; it starts anew where the weights are others."""
    return start()


@pytest.fixture(scope="session")
def sandbox():
    return AlignedModel.from_base(ModelRef(path=str(ASSETS / "model")))
