"""`dspa-bench serve`: vLLM's own server, in which the model's name says what steers a request."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from openai import APIConnectionError, BadRequestError, NotFoundError, OpenAI

from baselines.caa import CAA
from harness.data.triples import conversation
from tests.vllm.conftest import fitted

pytestmark = pytest.mark.vllm
ASKED = [" ".join(f"w{(5 * i + j) % 40}" for j in range(2 + i)) for i in range(8)]


@pytest.fixture(scope="module")
def caa(wide, triples, tmp_path_factory):
    return fitted(CAA(layer=1, scale=2.0), wide, triples, tmp_path_factory.mktemp("caa") / "caa")


@pytest.fixture(scope="module")
def client(on_wide, caa, tmp_path_factory):
    """Of a server of its own, with DSPA and CAA."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [str(Path(sys.executable).with_name("dspa-bench")), "serve", f"conditional={on_wide[1]}", str(caa[1])]
    command += ["--port", str(port), "--kv-cache-memory-bytes", str(2**26), "--gpu-memory-utilization", "0.05"]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
        )
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        while True:
            assert server.poll() is None, log.read_text()[-4000:]
            with suppress(APIConnectionError):
                client.models.list()
                break
            time.sleep(1)
        yield client
    finally:
        server.terminate()
        server.wait()


def said(client, model, text):
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=16
    )
    return reply.choices[0].message.content.strip()


def test_requests_of_one_batch_are_answered_by_whom_they_name(client, wide, on_wide, caa):
    known = {"base": wide, "conditional": on_wide[0], "caa": caa[0]}
    assert {one.id for one in client.models.list()} == set(known)
    asked = [(name, text) for text in ASKED for name in known]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: said(client, *one), asked))
    expected = {
        name: [one.text.strip() for one in model.generate([conversation(text) for text in ASKED], max_new_tokens=16)]
        for name, model in known.items()
    }
    for name in known:
        assert [answer for (of, _), answer in zip(asked, answers, strict=True) if of == name] == expected[name]
    assert expected["conditional"] != expected["base"] != expected["caa"]


def test_a_request_cannot_name_an_artifact_itself(client, on_wide):
    with pytest.raises(BadRequestError, match="not for a request to set"):
        client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": "w1"}],
            extra_body={"vllm_xargs": {"dspa_bench": str(on_wide[1])}},
        )
    with pytest.raises(NotFoundError):
        said(client, "nobody", "w1")
