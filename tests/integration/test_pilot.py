"""A finished run as a device: its speed from its bills, and a forecast beside what its cells took."""

import json

import yaml

from tests.toys import write_suite


def test_a_finished_run_is_a_device_whose_forecast_is_near_what_it_took(tiny_folders, triples_file, tmp_path, call):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"w{i} w39"}) + "\n" for i in range(4)))
    suite = write_suite(
        tmp_path / "suite",
        tiny_folders["llama"],
        judge=None,
        triples={"path": str(triples_file)},
        variants=[
            {"name": "base", "method": "base"},
            {"name": "caa", "method": "caa", "params": {"layer": 2}},
            {"name": "sft", "method": "sft", "params": {"tuning": "full", "batch_size": 4}},
        ],
        benchmarks=[{"name": "answers", "path": str(tmp_path / "prompts.jsonl"), "max_new_tokens": 4, "rating": False}],
        budgets=[8, 16],
        seeds=1,
    )
    run, mine = tmp_path / "run", tmp_path / "mine.yaml"
    assert call("run", suite, "--out", run, "-q")[0] == 0

    code, out, err = call("devices", "--measured", run, "--name", "pilot")
    assert (code, err) == (0, "")
    mine.write_text(out)
    device = yaml.safe_load(out)["devices"]["pilot"]
    assert 0 < device["training"] <= 1 and 0 < device["forward"] <= 1
    assert max(device["training"], device["forward"]) == 1
    assert device["layer_seconds"] > 0
    assert "bandwidth_gb_s" not in device
    assert "# training: " in out

    command = ["run", suite, "--out", run, "--dry-run", "--device", "pilot", "--devices", mine]
    code, out, _ = call(*command)
    assert code == 0
    assert "4 cells are over: forecast / taken, of tuning and fit, is " in out
    assert "the run is over: its workers took " in out
    assert "nothing is to do" in out
    forecast = json.loads(call(*command, "--json")[1])["forecast"]
    assert set(forecast["checked"]) == {"caa__n8__s0", "caa__n16__s0", "sft__n8__s0", "sft__n16__s0"}
    whole = forecast["whole"]
    assert 0.5 < whole["forecast"] / whole["taken"] < 2  # the fits of each kind and all the rest were fitted to it

    code, _, err = call("devices", "--measured", tmp_path / "nothing")
    assert code == 2
    assert "nothing" in err
