"""environment.json: where, when and with what a run was made."""

from harness.data.refs import ModelRef, SAERef
from harness.run_folder.document import Document


class GitState(Document):
    """The commit that the code ran from, and whether the checkout had uncommitted changes."""

    commit: str
    dirty: bool


class JudgeEntry(Document):
    """How a judge is called, and what a reader must be told of it."""

    label: str
    statement: str


class SecondJudgeEntry(JudgeEntry):
    """The judge that looked at the same answers again, and the benchmarks whose answers it judged."""

    benchmarks: tuple[str, ...]


class BaseEntry(ModelRef):
    """The base model and the identity of its content; ``path`` is relative to the run folder."""

    hash: str


class SAEEntry(SAERef):
    """An SAE and the hash of its folder (None for a public name); ``path`` is relative to the run folder."""

    hash: str | None


class TriplesEntry(Document):
    """The triples: their file relative to the run folder, how many there are, and the hash of their content."""

    path: str
    n: int
    hash: str


class Environment(Document):
    """What environment.json holds.

    ``created`` is when the run began (ISO 8601), ``suite_hash`` the hash of identity.json, ``threads`` those of one
    worker, ``packages`` name -> installed version, ``notes`` plain sentences that a report must say about the numbers,
    ``seconds`` the wall-clock time of all sittings so far.
    """

    created: str
    command: str
    suite_hash: str
    git: GitState | None
    python: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None
    threads: int
    packages: dict[str, str]
    judge: JudgeEntry | None
    second_judge: SecondJudgeEntry | None = None
    notes: tuple[str, ...] = ()
    base: BaseEntry
    saes: dict[str, SAEEntry]
    triples: TriplesEntry
    seconds: float = 0.0
