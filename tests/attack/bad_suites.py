"""Suites and command lines that are wrong: YAML that explodes, values of other kinds, plugins that break."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.attack.ground import FIT, RUN, SUITE, Case, Change, write_suite

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
YAML = {
    "empty": "",
    "null": "null\n",
    "a list": "- 1\n",
    "a number": "3\n",
    "tabs": "name:\n\t- x\n",
    "open bracket": "name: [a\n",
    "key twice": "name: a\nname: b\n",
    "recursive alias": "name: &a [*a]\n",
    "recursive keys": "name: &a {b: *a}\n",
    "3000 brackets": "name: " + "[" * 3000 + "]" * 3000 + "\n",
    "3000 keys deep": "name: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "billion laughs": LAUGHS,
    "billion laughs in keys": LAUGHS.replace("[", "{k: ").replace(", ", ", j: ") + "name: *a9\n",
    "merge of everything": "a: &a {<<: *a}\n",
    "unknown alias": "name: *b\n",
    "python object": "name: !!python/object/apply:os.system [ls]\n",
    "5000 digits": f"seed: {'9' * 5000}\n",
    "a bad date": "name: 2026-99-99\n",
    "a bad escape": 'name: "\\ud800"\n',
    "NUL": "name: a\0b\n",
    "two documents": "name: a\n---\nname: b\n",
    "list as key": "? [1, 2]\n: 3\n",
    "a set": "name: !!set {a, b}\n",
    "binary": "name: !!binary aGVsbG8=\n",
    "int of nothing": "seed: !!int x\n",
    "float of nothing": "seed: !!float x\n",
    "bad binary": "seed: !!binary x\n",
    "omap": "seed: !!omap [1]\n",
    "timestamp": "seed: !!timestamp x\n",
}
PLUGINS = {
    "raises": "raise RuntimeError('no')\n",
    "has a syntax error": "def (:\n",
    "imports what is missing": "import no_such_module\n",
    "imports a name that is missing": "from os import no_such_name\n",
    "exits": "import sys\nsys.exit(0)\n",
    "registers what is there": (
        "from harness.method import MethodConfig, register_method\n"
        "@register_method('dpo')\nclass A(MethodConfig): ...\n"
    ),
    "has NUL bytes": "a = '\0'\n",
    "recurses": "def f():\n    f()\nf()\n",
    "is not UTF-8": "a = '\udcff'\n",
}
INF, NAN = float("inf"), float("nan")
VALUES: tuple[tuple[str, Any], ...] = (
    ("name", ""),
    ("name", None),
    ("name", "a/b"),
    ("name", ".."),
    ("name", "x" * 300),
    ("name", ["a"]),
    ("seed", -1),
    ("seed", 1.5),
    ("seed", "x"),
    ("seed", 10**30),
    ("seeds", 0),
    ("seeds", -1),
    ("seeds", 10**8),
    ("seeds", 10**30),
    ("seeds", INF),
    ("budgets", []),
    ("budgets", [0]),
    ("budgets", [-4]),
    ("budgets", [True]),
    ("budgets", [4.5]),
    ("budgets", [10**12]),
    ("budgets", "4"),
    ("flops_budgets", [INF]),
    ("flops_budgets", [0]),
    ("flops_budgets", [1]),
    ("plugins", "x"),
    ("plugins", [""]),
    ("plugins", [".x"]),
    ("plugins", ["a b"]),
    ("plugins", ["no_such_module_at_all"]),
    ("base", None),
    ("base", {}),
    ("base", {"path": "nowhere"}),
    ("base", {"path": "x" * 5000}),
    ("base", {"path": "a\0b"}),
    ("base", {"path": "triples.jsonl"}),
    ("base", {"path": "model", "id": "a/b"}),
    ("base", {"id": ""}),
    ("base", {"id": "../../x"}),
    ("base", {"id": "no/such-model-anywhere"}),
    ("base.dtype", "int8"),
    ("base.chat", "nope"),
    ("saes", []),
    ("saes.early", {"path": "nowhere"}),
    ("saes.early", {"path": "a\0b"}),
    ("saes.early", {"path": "sae_early", "norm_filter": 0.5}),
    ("saes.early", {"path": "sae_early", "norm_filter": INF}),
    ("saes.early", {"path": "sae_early", "norm_filter": NAN}),
    ("triples.path", "nowhere.jsonl"),
    ("triples.path", "a\0b"),
    ("triples.path", "x" * 5000),
    ("triples.path", "model"),
    ("triples.path", "hub:"),
    ("judge.kind", "nope"),
    ("judge.base_url", "nowhere"),
    ("judge.base_url", "http://localhost:99999/v1"),
    ("judge.base_url", "http://local host/v1"),
    ("judge.base_url", "http://user:secret@localhost/v1"),
    ("judge.base_url", "http://[::1/v1"),
    ("judge.model", ""),
    ("judge.model", None),
    ("judge.temperature", -1),
    ("judge.temperature", NAN),
    ("judge.max_tokens", 0),
    ("judge.concurrency", 0),
    ("judge.timeout", INF),
    ("judge.price_in", -1),
    ("judge.price_in", None),
    ("judge.max_cost", NAN),
    ("benchmarks", []),
    ("benchmarks.0.questions", "nowhere.jsonl"),
    ("benchmarks.0.questions", "model"),
    ("benchmarks.0.max_new_tokens", 0),
    ("benchmarks.0.max_new_tokens", 10**9),
    ("benchmarks.0.max_new_tokens", 256),
    ("benchmarks.0.limit", 0),
    ("benchmarks.0.temperatures", INF),
    ("benchmarks.0.temperatures", {"writing": NAN}),
    ("benchmarks.0.temperatures", -1),
    ("benchmarks.0.batch_size", 0),
    ("benchmarks.1.temperature", INF),
    ("benchmarks.1.name", "mt_bench"),
    ("benchmarks.2.triples", "nowhere"),
    ("tune.trials", 1),
    ("tune.search", "luck"),
    ("tune.floor", NAN),
    ("variants", []),
    ("variants.0.name", "a__b"),
    ("variants.0.name", "x" * 260),
    ("variants.0.method", "nope"),
    ("variants.1.params", []),
    ("variants.1.params.alpha", INF),
    ("variants.1.params.alpha", NAN),
    ("variants.1.params.alpha", -1),
    ("variants.1.params.input_sae", "nope"),
    ("variants.1.params.k_prompt", 10**6),
    ("variants.1.params.unknown", 1),
    ("variants.2.params.layer", 99),
    ("variants.2.params.layer", -1),
    ("variants.2.params.scale", INF),
    ("variants.2.sweep", {"scale": [INF, 1.0]}),
    ("variants.2.sweep", {"scale": []}),
    ("variants.2.sweep", {"scale": [1.0, 1.0]}),
    ("variants.2.sweep", {"nope": [1]}),
    ("variants.2.sweep", {"scale": [float(i) for i in range(1, 300)], "layer": list(range(300))}),
    ("variants.2.sweep", {"layer": ["x" * 300]}),
    ("variants.0", {"name": "base", "method": "prompt", "sweep": {"instruction": ["w1 " * 90]}}),
    ("variants.3.params.learning_rate", INF),
    ("variants.3.params.learning_rate", NAN),
    ("variants.3.params.epochs", INF),
    ("variants.3.params.epochs", -1),
    ("variants.3.params.beta", INF),
    ("variants.3.params.batch_size", 0),
    ("variants.3.params.lora_targets", []),
    ("variants.3.params.lora_targets", ["nothing_is_called_this"]),
    ("variants.3.params.lora_targets", "("),
    ("variants.3.params.lora_rank", 0),
    ("variants.3.params.max_grad_norm", NAN),
    ("variants.3.tune", {"learning_rate": [INF, 1.0]}),
    ("variants.3.tune", {"learning_rate": {"low": 1.0, "high": 0.1}}),
    ("variants.3.tune", {"learning_rate": {"low": 0.1, "high": INF}}),
    ("variants.3.trials", 10**9),
    ("variants.3.trials", 1),
    ("report.baseline", "nope"),
    ("execution.workers", 0),
    ("execution.workers", 10**9),
    ("execution.threads", 0),
    ("execution.threads", 10**9),
    ("execution.device", "nope"),
    ("execution.device", "meta"),
    ("execution.device", "cuda"),
    ("execution.device", "xpu"),
    ("execution.checkpoint_minutes", NAN),
    ("execution.checkpoint_minutes", INF),
)
"""(key, a value that cannot be)."""
FINE: tuple[tuple[str, Any], ...] = (
    ("seed", 2**31 - 1),
    ("seeds", 100),
    ("budgets", [12]),
    ("flops_budgets", [10**9]),
    ("base.chat", "hh"),
    ("base.dtype", "bfloat16"),
    ("saes.early", {"path": "sae_early", "norm_filter": 10}),
    ("judge.temperature", 0.7),
    ("judge.base_url", "http://127.0.0.1:8000"),
    ("benchmarks.0.temperatures", {"writing": 0}),
    ("benchmarks.0.limit", 1),
    ("variants.0.label", "Ünïcödé 漢字 🎉 $\\frac{x$"),
    ("variants.1.params.alpha", 0),
    ("variants.2.params.scale", -1e3),
    ("execution.workers", 64),
    ("execution.checkpoint_minutes", 0),
    ("second_judge", {"kind": "openai", "base_url": "http://localhost:9/v1", "model": "other"}),
)


def _written(text: str) -> Change:
    def change(here: Path) -> None:
        (here / "suite.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))

    return change


def with_value(key: str, value: Any) -> dict[str, Any]:
    """`SUITE` with another value at ``key``."""
    suite = copy.deepcopy(SUITE)
    *path, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    inner: Any = suite
    for part in path:
        inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
    inner[last] = value
    return suite


def _with(key: str, value: Any) -> Change:
    return lambda here: write_suite(here, with_value(key, value))


def _plugin(text: str) -> Change:
    def change(here: Path) -> None:
        (here / "attacking_plugin.py").write_bytes(text.encode("utf-8", "surrogateescape"))
        write_suite(here, SUITE | {"plugins": ["attacking_plugin"]})

    return change


def _with_file(name: str, make: Callable[[Path], object], *arguments: str) -> Change:
    def change(here: Path) -> tuple[str, ...]:
        make(here / name)
        return arguments

    return change


def command_lines() -> Iterator[tuple[str, Change]]:
    """Arguments that cannot be."""
    long = "x" * 400
    deep = "/".join(["y" * 200] * 25)
    for name, arguments in {
        "--flops inf": (*FIT, "--flops", "inf"),
        "--flops nan": (*FIT, "--flops", "nan"),
        "--budget 0": (*FIT, "--budget", "0"),
        "--budget 1e9": (*FIT, "--budget", str(10**9)),
        "--seed -1": (*FIT, "--seed", "-1"),
        "--seed 1e30": (*FIT, "--seed", str(10**30)),
        "--checkpoint-minutes nan": (*FIT, "--checkpoint-minutes", "nan"),
        "--param learning_rate=.inf": (*FIT, "--param", "learning_rate=.inf"),
        "--param of brackets": (*FIT, "--param", "epochs=" + "[" * 3000),
        "--param of digits": (*FIT, "--param", "epochs=" + "9" * 5000),
        "--param recursive": (*FIT, "--param", "epochs=&a [*a]"),
        "--base with NUL": (*FIT[:3], "a\0b", *FIT[4:]),
        "--base of 5000 letters": (*FIT[:3], "/" + "x" * 5000, *FIT[4:]),
        "--triples with NUL": (*FIT[:5], "a\0b", *FIT[6:]),
        "--triples of 5000 letters": (*FIT[:5], "x" * 5000, *FIT[6:]),
        "fit --out of 400 letters": (*FIT[:-1], long),
        "fit --out of 5000 letters": (*FIT[:-1], deep),
        "fit --out with NUL": (*FIT[:-1], "a\0b"),
        "run --out of 400 letters": (*RUN[:-1], long),
        "run --out of 250 letters": (*RUN[:-1], "x" * 250),
        "run --out of 5000 letters": (*RUN[:-1], deep),
        "run --out with NUL": (*RUN[:-1], "a\0b"),
        "run --out below a file": (*RUN[:-1], "triples.jsonl/x"),
        "run --out is a file": (*RUN[:-1], "triples.jsonl"),
        "run --out is empty": (*RUN[:-1], ""),
        "run of nothing": ("run", "nowhere.yaml"),
        "run of a folder": ("run", "model"),
        "run with NUL": ("run", "a\0b"),
        "run of 5000 letters": ("run", "x" * 5000),
        "--set without a value": (*RUN, "--set", "seeds"),
        "--set of nothing": (*RUN, "--set", "=1"),
        "--set inside a value": (*RUN, "--set", "seed.x=1"),
        "--set of brackets": (*RUN, "--set", "seed=" + "[" * 3000),
        "--set recursive": (*RUN, "--set", "variants=&a [*a]"),
        "--set of a list's end": (*RUN, "--set", "variants.99.name=x"),
        "--max-cost nan": (*RUN, "--max-cost", "nan"),
        "--max-cost -1": (*RUN, "--max-cost", "-1"),
        "--reuse nothing": (*RUN, "--reuse", "nowhere"),
        "eval --out of 400 letters": ("eval", "adapter", "--suite", "suite.yaml", "--out", long),
        "report of nothing": ("report", "nowhere"),
        "report of 5000 letters": ("report", "x" * 5000),
        "verify of nothing": ("verify", "nowhere"),
        "describe of nothing": ("describe", "nope"),
    }.items():
        yield name, lambda _, arguments=arguments: arguments
    yield "run --out dangles", _with_file("out", lambda path: path.symlink_to("/nowhere/at/all"), *RUN)
    yield "run --out is a loop", _with_file("out", lambda path: path.symlink_to("out"), *RUN)
    yield "fit --out dangles", _with_file("out", lambda path: path.symlink_to("/nowhere/at/all"), *FIT)


def cases() -> Iterator[Case]:
    """All of them."""
    yield Case("suites in order", "as it is", lambda here: None, accepted=True)
    for name, text in YAML.items():
        yield Case("YAML", name, _written(text), said="suite.yaml")
    yield Case("YAML", "not UTF-8", _written("name: \udcff\n"), said="suite.yaml")
    for key, value in VALUES:
        said = key.split(".", 1)[0]  # what pydantic cannot know is said of the section
        yield Case("values in suites", f"{key}: {str(value)[:60]!r}", _with(key, value), said=said)
    for name, text in PLUGINS.items():
        yield Case("plugins", name, _plugin(text), said="attacking_plugin")
    for name, change in command_lines():
        yield Case("command lines", name, change)
    for key, value in FINE:
        yield Case("suites in order", f"{key}: {value!r}", _with(key, value), accepted=True)
