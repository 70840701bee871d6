"""What the Ray executor costs beside the local one: 48 small cells on two cores, turn by turn.

`python -m tests.ray_overhead`. Both are whole commands, from the start of Python to the report; the cluster, of two
nodes with a core each, is up before.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import make_model, make_tokenizer
from tests.ray_nodes import new_cluster, node
from tests.toys import outcome, write_suite

ROUNDS = int(os.environ.get("ROUNDS", "3"))
DPO = {"tuning": "lora", "batch_size": 2, "learning_rate": 0.001, "epochs": 4}
PROGRAM = "from harness.cli import main\nif __name__ == '__main__':\n    main()\n"


def main() -> None:
    """Prints a line for each round, and the medians."""
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as home:
        folder = Path(home)
        (folder / "program.py").write_text(PROGRAM)  # worker processes import the main module
        make_model("llama").save_pretrained(folder / "base")
        make_tokenizer().save_pretrained(folder / "base")
        variants = [{"name": f"dpo{n}", "method": "dpo", "params": {**DPO, "beta": 0.1 * n}} for n in (1, 2, 3, 4)]
        suite = write_suite(folder / "suite", folder / "base", variants=variants, budgets=[8], seeds=12, report=None)
        cluster = new_cluster()
        try:
            for _ in range(2):
                cluster.add_node(**node())
            ways = {
                "local": ["--set", "execution.workers=2"],
                "ray": ["--executor", "ray", "--address", cluster.address],
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(ROUNDS):
                for name in list(ways)[:: 1 if number % 2 else -1]:
                    seconds[name].append(_timed(folder, suite, folder / f"{name}{number}", ways[name]))
                assert outcome(folder / f"local{number}") == outcome(folder / f"ray{number}"), "not the same results"
                print({name: round(found[-1], 1) for name, found in seconds.items()}, flush=True)
        finally:
            cluster.shutdown()
    local, on_ray = (statistics.median(seconds[name]) for name in ways)
    print(f"median of {ROUNDS}: local {local:.1f} s, Ray {on_ray:.1f} s: {100 * (on_ray / local - 1):+.1f} %")


def _timed(folder: Path, suite: Path, out: Path, options: list[str]) -> float:
    start = time.monotonic()
    command = [sys.executable, folder / "program.py", "run", suite, "--out", out, "--quiet", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
