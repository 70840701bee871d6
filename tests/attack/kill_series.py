"""Runs that are killed at random moments: with the kills behind them, they are what an uninterrupted run is.

A small suite with fits, benchmarks and a paid judge on this machine. Each run is a fork of this process, which has
imported everything, so that a kill costs a second. Some have worker processes, which start from nothing.
"""

import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from tests.attack.table import Row
from tests.judge_server import Server, serving
from tests.toys import outcome, write_suite

OPEN_AT_ONCE = 3
"""Requests of the judge that are open at once."""
KILLS_A_RUN = 8
DPO = {"tuning": "lora", "batch_size": 2, "lora_dropout": 0.1, "learning_rate": 0.001}
UNFINISHED = ("*.partial", ".report-*", ".*.json.*", ".*.jsonl.*", ".*.yaml.*", ".*.csv.*", "fitting")
TIMES = ("second", "byte", "memory", "mib", "time", "cost")
"""What a column's name says of what differs from run to run."""
UNEQUAL = ("judging.csv", "operators.csv", "settings.csv")
"""What was paid, which of the steps were looked at, and where the run lies."""


class Slow(Server):
    """Takes a moment for each request, and writes it down."""

    log = Path(os.devnull)

    def plan(self, words):
        with self.log.open("a") as file:
            file.write(f"{len(words)}\n")
        time.sleep(0.02)
        return super().plan(words)


def _serve(log: Path, pipe: Connection) -> None:
    Slow.log = log
    with serving(_verdict, Slow) as server:
        pipe.send(server.url)
        with suppress(EOFError):
            pipe.recv()


def _verdict(question: str) -> str:
    """One of the form that is asked for, the same for the same question."""
    if "[[YES]]" in question:
        return "[[NO]]"
    return f"[[{1 + len(question) % 5}]]"


@dataclass
class Killing:
    """``suite`` is what is run, in folders below ``folder``; the server writes each request to ``log``.

    An uninterrupted run is in ``whole``, takes ``seconds`` and has ``asked`` so many requests; with nothing left to do
    one takes ``idle`` seconds. ``runs`` were killed and brought to their end; they sent ``repeated`` requests again."""

    folder: Path
    suite: Path
    log: Path
    draw: random.Random
    whole: Path = Path()
    seconds: float = 0.0
    idle: float = 0.0
    asked: int = 0
    runs: int = 0
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)

    def paid(self) -> int:
        """Requests that came to the server until now."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def begin(self, out: Path, workers: int, *more: str) -> int:
        """Start the run, with ``more`` words on its command line, in a session of its own; its process id."""
        words = ["run", str(self.suite), "--out", str(out), "--set", f"execution.workers={workers}", *more]
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setsid()
            said = os.open(f"{out}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            code = _program(words, f"{out}.modules")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def uninterrupted(self) -> None:
        """Make the run that all others are compared with, and import here whatever it needed."""
        self.whole, before = self.folder / "whole", time.monotonic()
        for _ in range(2):  # the second has everything imported
            shutil.rmtree(self.whole, ignore_errors=True)
            paid, before = self.paid(), time.monotonic()
            code = _end(self.begin(self.whole, 1))
            self.seconds, self.asked = time.monotonic() - before, self.paid() - paid
            assert code == 0, Path(f"{self.whole}.said").read_text()
            for name in Path(f"{self.whole}.modules").read_text().split():
                with suppress(Exception), warnings.catch_warnings(action="ignore"):
                    import_module(name)
        before = time.monotonic()
        assert _end(self.begin(self.whole, 1)) == 0, Path(f"{self.whole}.said").read_text()
        self.idle = time.monotonic() - before

    def series(self, what: str, number: int, kills: int, workers: int = 1, *, group: bool = False) -> Row:
        """Kill runs by the signal ``number`` until there were ``kills``; each run is then brought to its end.

        With a ``group`` the workers are sent the signal, too. A moment is drawn from what is left of a run: what was
        done before a kill is not done again. Workers start from nothing, which takes longer than the run.
        """
        done, runs, before, slower = 0, 0, len(self.wrong), 4 if workers > 1 else 1
        while done < kills:
            out, paid, mine = self.folder / f"{what.replace(' ', '-')}-{runs}", self.paid(), 0
            runs, left = runs + 1, slower * (self.seconds - self.idle)
            while done < kills and mine < KILLS_A_RUN:
                pid = self.begin(out, workers)
                seconds = self.draw.uniform(0.0, slower * self.idle + left)
                left -= max(0.0, seconds - slower * self.idle)
                time.sleep(seconds)
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self._expect(os.waitstatus_to_exitcode(status) == 0, f"{out.name}: ended by itself with {status}")
                    break
                with suppress(ProcessLookupError):
                    (os.killpg if group else os.kill)(pid, number)
                code = _end(pid)
                self._after(out, number, code, pid)
                done, mine = done + 1, mine + 1
            self._expect(_end(self.begin(out, workers)) == 0, f"{out.name}: does not come to its end")
            self._compare(out, self.paid() - paid)
            if len(self.wrong) == before:
                shutil.rmtree(out, ignore_errors=True)
        wrong = len(self.wrong) - before
        return Row(what, done, max(0, done - wrong), 0, wrong)

    def _expect(self, right: bool, otherwise: str) -> None:
        if not right:
            self.wrong.append(otherwise)

    def _after(self, out: Path, number: int, code: int, pid: int) -> None:
        """What must hold as soon as a killed process is gone."""
        end = time.monotonic() + 60
        while (left := _session(pid)) and time.monotonic() < end:
            time.sleep(0.05)
        self._expect(not left, f"{out.name}: processes {left} are left")
        if number == signal.SIGTERM:
            said = Path(f"{out}.said").read_text()[-2000:]
            self._expect(code in (143, -signal.SIGTERM, 0), f"{out.name}: SIGTERM gave exit code {code}: {said}")
            unfinished = [path.name for path in _unfinished(out) if path.name != "fitting"]
            self._expect(not unfinished, f"{out.name}: SIGTERM left {unfinished}")
        said = Path(f"{out}.said").read_text()
        self._expect("Traceback" not in said and "leaked" not in said, f"{out.name}: said {said[-2000:]}")

    def _compare(self, out: Path, paid: int) -> None:
        from harness.judging.ledger import read_accounts
        from harness.run_folder import RunFolder
        from harness.run_folder.verify import verify

        mine, whole = _told(out), _told(self.whole)
        unequal = sorted(name for name in {*mine, *whole} if mine.get(name) != whole.get(name))
        self._expect(not unequal, f"{out.name}: {unequal} are not those of an uninterrupted run")
        tables, expected = _tables(out), _tables(self.whole)
        self._expect(tables == expected, f"{out.name}: {[n for n in expected if tables.get(n) != expected[n]]} differ")
        (account,) = read_accounts(out / "judging").values()
        twice = account.unsettled + account.lost
        # A request that was open at the kill was paid, and its reply is lost; nothing else is asked twice.
        self._expect(self.asked <= paid <= self.asked + twice, f"{out.name}: {paid} requests, {self.asked} + {twice}")
        self._expect(paid <= account.calls, f"{out.name}: the ledger has {account.calls} of {paid} requests")
        self._expect(twice <= OPEN_AT_ONCE * 2 * KILLS_A_RUN, f"{out.name}: {twice} requests were open at kills")
        self._expect(not list(_unfinished(out)), f"{out.name}: {list(_unfinished(out))} are left")
        self._expect(verify(RunFolder(out), thorough=True) == [], f"{out.name}: is not what was written")
        with RunFolder(out).lock():
            pass
        self.repeated, self.runs = self.repeated + paid - self.asked, self.runs + 1


def run(kills: int = 100, terms: int = 50, with_workers: int = 8, seed: int = 0) -> list[Row]:
    """Kill so often by SIGKILL and by SIGTERM; ``with_workers`` of each, at most, are runs with two workers."""
    with tempfile.TemporaryDirectory(prefix="dspa-bench-kills-") as folder, _judge(Path(folder) / "asked") as url:
        killing = Killing(Path(folder), _suite(Path(folder), url), Path(folder) / "asked", random.Random(seed))
        killing.uninterrupted()
        hard, soft = min(with_workers, kills), min(with_workers, terms)
        rows = [
            killing.series("kill -9, one process", signal.SIGKILL, kills - hard),
            killing.series("kill -9, two workers", signal.SIGKILL, hard, 2),
            killing.series("SIGTERM, one process", signal.SIGTERM, terms - soft),
            killing.series("SIGTERM, two workers", signal.SIGTERM, soft, 2, group=True),
        ]
        for line in killing.wrong:
            print(f"wrong: {line}", file=sys.stderr)
        sent = f"{killing.asked} requests in each of {killing.runs} runs, and {killing.repeated} again: open at a kill"
        print(sent, file=sys.stderr)
        return [row for row in rows if row.tried]


@contextmanager
def _judge(log: Path) -> Iterator[str]:
    """The address of a judge in a process of its own."""
    here, there = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_serve, args=(log, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def _suite(folder: Path, url: str) -> Path:
    from tests.conftest import make_model, make_tokenizer

    make_model("llama").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    questions = [{"question_id": n, "category": "writing", "turns": [f"w{n} w1", f"w{n} w2"]} for n in (81, 82, 83)]
    for kind in ("harmful", "harmless"):
        rows = [{"prompt": f"{kind} w{n} w{n + 1}"} for n in range(3)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    sampled = {"temperature": 1.0, "max_new_tokens": 6}
    judge = {"kind": "openai", "base_url": url, "model": "judge", "attempts": 2, "concurrency": OPEN_AT_ONCE}
    return write_suite(
        folder,
        folder / "model",
        budgets=[8],
        seeds=1,
        judge=judge | {"price_in": 100.0, "price_out": 1000.0},
        benchmarks=[
            {"name": "mt_bench", "questions": "mt.jsonl", "temperatures": 1.0, "max_new_tokens": 6},
            {"name": "safety", "harmful": "harmful.jsonl", "harmless": "harmless.jsonl", **sampled},
            {"name": "toy_bench", "questions": "questions.jsonl", "batch_size": 2},
        ],
        variants=[
            {"name": "base", "method": "base"},
            {"name": "caa", "method": "caa", "params": {"layer": 1}, "tune": {"scale": [0.5, 1.0]}},
            {"name": "dpo", "method": "dpo", "params": DPO},
        ],
        tune={"trials": 2},
        execution={"checkpoint_minutes": 1e-6},
    )


def _program(words: Sequence[str], modules: str) -> int:
    from harness.cli.app import main

    sys.argv = ["dspa-bench", *words]
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == 0:
            Path(modules).write_text("\n".join(sys.modules))
        return code
    return 0


def _end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _session(leader: int) -> list[int]:
    """The processes of the session that ``leader`` began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session, *_ = path.read_text().rpartition(") ")[2].split()
            if int(session) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def _unfinished(out: Path) -> Iterator[Path]:
    return (path for pattern in UNFINISHED for path in out.rglob(pattern))


def _told(out: Path) -> dict[str, object]:
    """The `outcome` of a run, without the times that FastChat's files hold."""
    found: dict[str, object] = {}
    for name, content in outcome(out).items():
        lines = content.splitlines() if isinstance(content, bytes) and b'"tstamp": ' in content else None
        found[name] = content if lines is None else [{**json.loads(line), "tstamp": None} for line in lines]
    return found


def _tables(out: Path) -> dict[str, list[dict[str, str]]]:
    """The report's tables, without what differs from run to run."""
    found = {}
    for path in sorted((out / "report" / "tables").glob("*.csv")):
        if path.name not in UNEQUAL:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            found[path.name] = [{k: v for k, v in r.items() if not any(t in k.lower() for t in TIMES)} for r in rows]
    return found


def main(arguments: Sequence[str]) -> int:
    """``python -m tests.attack.kill_series [KILLS TERMS WITH_WORKERS SEED]``: exit code 1 if anything went wrong."""
    rows = run(*map(int, arguments))
    print(*map(tuple, rows), sep="\n")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
