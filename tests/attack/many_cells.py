"""What a run of thousands of cells costs beside its cells, which do nothing: seconds and memory of each command."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.benchmark import BenchmarkConfig, Metric, Record, register_benchmark
from harness.method import MethodConfig, register_method

BUDGETS, SEEDS, ITEMS = 20, 20, 4
PROGRAM = "from harness.cli import main; main()"


@register_method("idle")
class Idle(MethodConfig):
    """The base model, whatever the triples."""

    def fit(self, base, triples, *, meter, seed):
        return base.derive(method="idle")


@register_benchmark("idle")
class IdleBench(BenchmarkConfig):
    """Asks nothing, and has a value for each of `ITEMS` items."""

    needs_judge = False

    @property
    def metrics(self):
        return (Metric(name="idleness", title="Idleness", unit="%"),)

    def check(self) -> None: ...

    def run(self, model, *, judge, seed, folder=None):
        yield from (Record(str(item), str(item), "idleness", float(seed % (item + 7))) for item in range(ITEMS))


def write_suite(folder: Path, cells: int) -> Path:
    """A suite of ``cells`` cells (a multiple of 400): `BUDGETS`, `SEEDS`, and as many variants as that takes."""
    from tests import toys
    from tests.conftest import make_model, make_tokenizer

    make_model("llama").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"w{n} w{n + 1}", "chosen": f"w{n}", "rejected": f"w{n + 2}"} for n in range(BUDGETS)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return toys.write_suite(
        folder,
        folder / "model",
        plugins=["tests.attack.many_cells"],
        triples={"path": "many.jsonl"},
        budgets=list(range(1, BUDGETS + 1)),
        seeds=SEEDS,
        judge=None,
        benchmarks=[{"name": "idle"}],
        variants=[{"name": f"v{n:02}", "method": "idle"} for n in range(cells // (BUDGETS * SEEDS))],
        report=None,
    )


def measured(*arguments: str | Path) -> tuple[float, float, str]:
    """Seconds and peak MiB of a command of the program, and what it said."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)], stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"{arguments}: exit code {process.returncode}\n{text[-3000:]}")
    return time.monotonic() - start, usage.ru_maxrss / 1024, text


def measure(cells: int) -> Iterator[tuple[str, float, float]]:
    """(command, seconds, peak MiB) of planning, running and reporting such a suite."""
    with tempfile.TemporaryDirectory(prefix="dspa-bench-many-") as home:
        suite, out = write_suite(Path(home), cells), Path(home) / "run"
        for what, arguments in {
            "run --dry-run": ("run", suite, "--out", out, "--dry-run"),
            "run": ("run", suite, "--out", out, "--quiet"),
            "run again": ("run", suite, "--out", out, "--quiet"),
            "report": ("report", out, "--out", Path(home) / "report"),
            "verify": ("verify", out),
        }.items():
            seconds, memory, said = measured(*arguments)
            if what == "run --dry-run":
                assert re.search(rf"^cells: {cells}, of which {cells} to do", said, re.MULTILINE), said[-3000:]
            yield what, seconds, memory


def main(arguments: Sequence[str]) -> int:
    """``python -m tests.attack.many_cells [CELLS ...]``: a line for each command."""
    for cells in map(int, arguments or ["10000"]):
        if cells % (BUDGETS * SEEDS):
            raise SystemExit(f"{cells} cells: must be a multiple of {BUDGETS * SEEDS}")
        for what, seconds, memory in measure(cells):
            print(f"{cells:6} cells  {what:14} {seconds:8.1f} s {memory:8.0f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
