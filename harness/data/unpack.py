"""From what an address serves to the file that benchmarks read: archives, transcripts, samples."""

import gzip
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.files import write_jsonl, write_text

ANSWER = "\n\nAssistant:"
SAMPLE = 1000
_NOT_THE_FORMAT = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, json.JSONDecodeError)
_NOT_THE_FORMAT += (KeyError, TypeError)


def unpack(kind: str, source: Path, target: Path) -> None:
    """Make ``target`` from the download ``source``; it appears whole or not at all. ValueError for a bad download."""
    try:
        _KINDS[kind](source, target)
    except _NOT_THE_FORMAT as problem:
        raise ValueError(f"what was downloaded is no {kind} input ({type(problem).__name__}: {problem})") from None


def _tar(source: Path, target: Path) -> None:
    """The files below the archive's top folder as a folder, without MMLU's auxiliary training data."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with tarfile.open(source) as archive:
            for member in archive.getmembers():
                _, _, inner = member.name.removeprefix("./").partition("/")
                if member.isfile() and inner and not inner.startswith(("auxiliary_train", ".")):
                    archive.extract(member.replace(name=inner, deep=False), scratch, filter="data")
        if not any(scratch.iterdir()):
            raise ValueError("the archive holds no files below a top folder")
        scratch.chmod(0o755)
        scratch.replace(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _hh_triples(source: Path, target: Path) -> None:
    """Anthropic's transcripts as triples: the prompt is all up to the last answer, which is where both differ.

    Pairs that differ earlier, or that state no preference (an empty or an equal answer), are no triples.
    """
    write_jsonl(target, _triples(source))


def _triples(source: Path) -> Iterator[dict[str, str]]:
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            (prompt, chosen), (other, rejected) = (_split(row[key]) for key in ("chosen", "rejected"))
            if prompt == other != "" and chosen and rejected and chosen != rejected:
                yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "hh_harmless_test"}


def _split(transcript: str) -> tuple[str, str]:
    prompt, mark, answer = transcript.rpartition(ANSWER)
    return (prompt + mark).lstrip(), answer.strip()


def _sample(source: Path, target: Path) -> None:
    """1,000 lines, evenly spaced over the file."""
    lines = [line for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
    if len(lines) < SAMPLE:
        raise ValueError(f"{SAMPLE} lines are wanted, the download has {len(lines)}")
    write_text(target, "".join(lines[i * len(lines) // SAMPLE] + "\n" for i in range(SAMPLE)))


_KINDS: dict[str, Callable[[Path, Path], None]] = {"tar": _tar, "hh_triples": _hh_triples, "sample_1000": _sample}
