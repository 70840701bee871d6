"""Cells as tasks on a Ray cluster: where they run, what becomes of those whose worker or node dies."""

import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.data.external import DATA_VARIABLE, data_folder
from harness.experiment.executors.cargo import cargo_of
from harness.experiment.executors.desk import Desk, Place, Sign, admit, arrival
from harness.experiment.executors.node import CANARY, Job, look, plan_digest, versions, work
from harness.experiment.executors.worker import START_SECONDS, Progress, fail, variables
from harness.experiment.sections import ExecutionSection
from harness.experiment.suite import Suite, load_suite
from harness.judging.verdicts import Replies
from harness.run_folder.layout import RunFolder
from harness.run_folder.sweep import sweep_cell

LOOK_SECONDS = 0.5
"""How long is waited at most before the desk is asked for news."""
CONNECT_SECONDS = 10.0
"""How long the head may take to answer at all."""
GRACE_SECONDS = 10.0
"""How long workers may take to end when they are told to."""
MOST_WAITING = 16
"""Cells that Ray is given beyond those that it has room for, at most; they wait there."""
_PASSED_ON = ("DSPA_BENCH_", "HF_", "TRANSFORMERS_", "TOKENIZERS_")
"""Beginnings of the variables that decide what a worker finds; Ray gives it those of its node."""
_KEY = re.compile(r"_API_KEYS?$")
_joined = False
"""Whether this process joined its cluster by `connect`; one that its user joined is left alone."""


@contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Ray takes SIGTERM for itself, by which a run would no longer say how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def connect(address: str) -> None:
    """Join the cluster at ``address``, if this process is in none; ValueError where there is none to join."""
    global _joined
    if ray.is_initialized():
        return
    if "://" in address:
        raise ValueError(
            f"address {address!r}: the driver reads and writes files for the nodes, so it has to run on a machine of "
            "the cluster (one that does no work: `ray start --address HEAD:PORT --num-cpus 0`); give HOST:PORT, or auto"
        )
    host, _, port = address.rpartition(":")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a change to come
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of tasks that are given up on purpose
    try:
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with _sigterm_as_before():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        _joined = True
    except (RuntimeError, ValueError, OSError, OverflowError, RayError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise ValueError(
            f"there is no Ray cluster at {address!r} that this machine is in ({reason}); start one with `ray start "
            "--head` here and `ray start --address HEAD:PORT` on the others, or give another address"
        ) from None


def check_cluster(suite: Suite) -> None:
    """Raise ValueError where the cluster is not there, none of its nodes has room for a cell, or what the suite asks
    for cannot be had without a shared folder."""
    how = suite.file.execution
    if not how.shared_folder and (names := _own_servers(suite)):
        raise ValueError(
            f"{', '.join(names)} pays a server for annotations that are kept in the cell's folder, where a node that "
            "dies would lose them: give the run a folder that all nodes share, or judge by `judge:`"
        )
    connect(how.address)
    if not _room(how):
        most = {name: max((node["Resources"].get(name, 0) for node in _nodes()), default=0) for name in ("CPU", "GPU")}
        raise ValueError(
            f"no node of the Ray cluster has the {_cpus(how):g} CPUs and {how.per_cell.gpus:g} GPUs of a cell; the "
            f"largest have {most['CPU']:g} CPUs, {most['GPU']:g} GPUs: lower execution.per_cell, or start other nodes"
        )


def run_ray(folder: Path, cells: Collection[str], how: ExecutionSection, progress: Progress) -> None:
    """Run ``cells`` of the run in ``folder`` (absolute) on the cluster; a cell that fails leaves its reason there.

    A cell is asked for when there will soon be room for it. One whose worker or node dies is begun again, elsewhere
    where there is room, ``how.retries`` times at most; then it failed. Without nodes that could hold a cell this waits
    for one. ValueError, before any cell is begun, for nodes that cannot do it: other versions of packages, another
    folder at the same path.
    """
    connect(how.address)
    try:
        _Fleet(RunFolder(folder), how, progress, iter(cells)).run()
    finally:
        if _joined:
            with _sigterm_as_before():
                ray.shutdown()


def _cpus(how: ExecutionSection) -> float:
    return how.threads if how.per_cell.cpus is None else how.per_cell.cpus


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _room(how: ExecutionSection) -> dict[str, int]:
    """Node id -> the cells it could hold at once if it did nothing else; nodes that could hold none are left out."""
    wanted = {name: amount for name, amount in (("CPU", _cpus(how)), ("GPU", how.per_cell.gpus)) if amount}
    found = {}
    for node in _nodes():
        found[node["NodeID"]] = int(min(node["Resources"].get(name, 0) / amount for name, amount in wanted.items()))
    return {node: count for node, count in found.items() if count}


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _own_servers(suite: Suite) -> list[str]:
    """The benchmarks that ask a server themselves."""
    return [name for name, benchmark in suite.benchmarks.items() if benchmark.cap_key is not None]


@dataclass
class _Attempt:
    """A cell that Ray was given. ``sign`` is None until a worker has it, ``silent`` the seconds since its last sign;
    ``hung``: how it hung, when it was ended for that."""

    cell: str
    number: int
    sign: Sign | None = None
    silent: float = 0.0
    hung: str | None = None


@dataclass
class _Fleet:
    """The cells of one sitting: those to do, those that Ray has, and what went wrong with them before."""

    run_folder: RunFolder
    how: ExecutionSection
    progress: Progress
    cells: Iterator[str]
    again: list[str] = field(default_factory=list)
    running: dict[ray.ObjectRef, _Attempt] = field(default_factory=dict)
    hung: dict[str, str] = field(default_factory=dict)
    lost: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)  # cell -> the node that it was lost on

    def run(self) -> None:
        """Until all are over."""
        job = self._describe()
        with Replies(self.run_folder.judging).claims() if job.paid else nullcontext() as claims:
            if claims is not None:
                claims.take(CANARY)
            self._run(job)

    def _run(self, job: Job) -> None:
        here = _on(ray.get_runtime_context().get_node_id())
        # What a desk knows of who asks a judge what is lost with it; without that, it can be started again.
        lives = {"max_restarts": -1 if job.cargo is None else 0}
        desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here, **lives)
        self._desk: Any = desk.remote(self.run_folder.path)
        environment = {"env_vars": variables(self.how.threads)}
        self._job = ray.put(job)
        self._check_nodes(environment)
        resources = {"num_cpus": _cpus(self.how), "num_gpus": self.how.per_cell.gpus, "runtime_env": environment}
        self._work: Any = ray.remote(max_retries=0, **resources)(work)
        looked, room, waiting = time.monotonic(), sum(_room(self.how).values()), False
        try:
            while True:
                # Some wait in Ray, so that none of its processes does; and one where there is no room, as a request.
                while len(self.running) < max(1, room + min(room, MOST_WAITING)) and (cell := self._next()) is not None:
                    self._begin(cell)
                if not self.running:
                    return
                ended, _ = ray.wait(list(self.running), timeout=LOOK_SECONDS)
                before, looked = looked, time.monotonic()
                self._hear(min(looked - before, 2 * LOOK_SECONDS))  # all of the run may have been stopped meanwhile
                for ref in ended:
                    self._settle(ref, self.running.pop(ref))
                room = sum(_room(self.how).values())
                if not room and not waiting:
                    for attempt in list(self.running.values())[:1]:
                        self.progress.stage(attempt.cell, "no node has room for a cell any more; waits for one", 0)
                waiting = not room
        finally:
            self._end_all()

    def _next(self) -> str | None:
        return self.again.pop() if self.again else next(self.cells, None)

    def _describe(self) -> Job:
        folder = self.run_folder.path
        suite = load_suite(folder / "suite.yaml")
        keys = {getattr(judge, "api_key_env", None) for judge in suite.judges.values()}
        wanted = [name for name in os.environ if name.startswith(_PASSED_ON) or name in keys or _KEY.search(name)]
        return Job(
            folder=str(folder),
            plan=plan_digest(folder),
            threads=self.how.threads,
            environment={name: os.environ[name] for name in wanted} | {DATA_VARIABLE: str(data_folder().absolute())},
            python_path=tuple(entry for entry in sys.path if entry),
            versions=versions(),
            paid=any(hasattr(judge, "max_cost") for judge in suite.judges.values()) or bool(_own_servers(suite)),
            cargo=None if self.how.shared_folder else cargo_of(suite, self.run_folder),
        )

    def _check_nodes(self, environment: dict[str, Any]) -> None:
        """ValueError for the first of the nodes there are that cannot do this run's cells; those that join later fail
        their cells."""
        looks = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment)(look)
        for ref in [looks.options(scheduling_strategy=_on(node)).remote(self._job) for node in _room(self.how)]:
            try:
                reason = ray.get(ref)
            except RayTaskError as problem:
                reason = f"a node of the Ray cluster cannot run this program: {problem.cause}"
            except RayError:  # the node is gone
                continue
            if reason is not None:
                raise ValueError(reason)

    def _begin(self, cell: str) -> None:
        attempt = _Attempt(cell, len(self.lost.get(cell, ())) + (cell in self.hung))
        options: dict[str, Any] = {"name": cell}
        if (before := self.left.pop(cell, None)) is not None:
            others = [node for node in _room(self.how) if node != before]
            if others:
                options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(others[0], soft=True)
        ref = self._work.options(**options).remote(
            self._job, cell, attempt.number, self.hung.get(cell), self.lost.get(cell, ()), self._desk
        )
        self.running[ref] = attempt

    def _hear(self, seconds: float) -> None:
        """Pass on what the workers said in the last ``seconds``, and end those that have been silent for too long."""
        news: dict[str, Sign] = {}
        with suppress(RayError):  # it is being started again, and what it was told is told again soon
            news = ray.get(self._desk.news.remote())
        for attempt in self.running.values():
            sign = news.get(attempt.cell)
            if sign is None or sign.attempt != attempt.number:
                attempt.silent += seconds if attempt.sign else 0.0
            else:
                if sign.stage and (attempt.sign is None or attempt.sign != sign):
                    self.progress.stage(attempt.cell, sign.stage, sign.records)
                attempt.sign, attempt.silent = sign, 0.0
            if attempt.sign and attempt.hung is None and 0 < self._patience(attempt.sign) <= attempt.silent:
                stage = attempt.sign.stage or "its beginning"
                attempt.hung = f"no progress for {self.how.hung_minutes:g} minutes in {stage}"
                _kill(attempt.sign.place)

    def _patience(self, sign: Sign) -> float:
        """Seconds; 0: for ever."""
        seconds = 60 * self.how.hung_minutes
        return seconds if sign.stage or not seconds else max(seconds, START_SECONDS)

    def _settle(self, ref: ray.ObjectRef, attempt: _Attempt) -> None:
        try:
            ray.get(ref)
        except (RayTaskError, RuntimeEnvSetupError) as problem:
            # No accident: it would be so everywhere, such as a node without the plugin that the suite names.
            cause = getattr(problem, "cause", problem)
            self._fail(attempt, f"{type(cause).__name__}: {cause}")
        except RayError as problem:
            self._lose(attempt, problem)
        else:
            if not self.how.shared_folder:
                admit(self.run_folder, attempt.cell, attempt.number)
            self.progress.over(attempt.cell)

    def _lose(self, attempt: _Attempt, problem: RayError) -> None:
        """Begin a cell again whose worker is gone, or let it fail."""
        cell, where = attempt.cell, f" on {attempt.sign.place.host}" if attempt.sign else ""
        if attempt.hung is not None:
            if cell in self.hung:
                self._fail(attempt, f"worker process hung twice ({attempt.hung}) and was ended")
                return
            self.hung[cell], how = attempt.hung, f"{attempt.hung}; its worker was ended"
        else:
            hint = "; not enough memory? give a cell more execution.per_cell.cpus, so that fewer share a node"
            cause = f"{type(problem).__name__}{hint if isinstance(problem, OutOfMemoryError) else ''}"
            how = f"worker process died{where} ({cause})"
            self.lost[cell] = (*self.lost.get(cell, ()), how)
            if len(self.lost[cell]) > self.how.retries:
                times = len(self.lost[cell])
                self._fail(attempt, how if times == 1 else f"{how}, as in {times - 1} attempts before")
                return
        if attempt.sign:
            self.left[cell] = attempt.sign.place.node
        self._forget(attempt)
        self.again.append(cell)
        self.progress.stage(cell, f"{how}, and it is begun once more", 0)

    def _forget(self, attempt: _Attempt) -> None:
        """Take away what an attempt that is no more left unfinished."""
        if self.how.shared_folder:
            sweep_cell(self.run_folder.cell(attempt.cell).path)
        else:
            shutil.rmtree(arrival(self.run_folder, attempt.cell, attempt.number), ignore_errors=True)
            self._desk.release.remote(None, (attempt.cell, attempt.number))

    def _fail(self, attempt: _Attempt, error: str) -> None:
        cell = attempt.cell
        host = attempt.sign.place.host if attempt.sign else None
        more = {"hung": self.hung.get(cell), "host": host, "lost": self.lost.get(cell, ())}
        self._forget(attempt)
        fail(self.run_folder.cell(cell), error, **more)
        self.progress.over(cell)

    def _end_all(self) -> None:
        """Nobody writes to the folder any more when this returns."""
        for ref in self.running:
            ray.cancel(ref, force=True)
        if self.running:
            ray.wait(list(self.running), num_returns=len(self.running), timeout=GRACE_SECONDS)
        for attempt in self.running.values():
            self._forget(attempt)


def _kill(place: Place) -> None:
    """End a worker in which nothing goes on, which Ray could only ask to; where it was stands in the cell's log."""

    def end(pid: int) -> None:
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)

    ray.remote(num_cpus=0, max_retries=0)(end).options(scheduling_strategy=_on(place.node)).remote(place.pid)
