"""A Chrome trace of the steps that the torch profiler sampled: one JSON file, written whole or not at all."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import profile

from harness.files import write_text

_ID_BLOCK = 2**32
"""Arrows between events are numbered within a profile; each profile's numbers move up by one block more."""


class Trace:
    """Collects profiles, one for each name; a later one takes the place of an earlier one of the same name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, Path] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def keep(self, name: str, profiler: profile) -> None:
        """Keep the events of ``profiler``, which has stopped."""
        path = self._parts.setdefault(name, self._folder / f"{len(self._parts)}.json")
        profiler.export_chrome_trace(str(path))

    def merged(self) -> dict[str, Any]:
        """All profiles as one trace (Chrome's JSON object format), at the times at which they ran."""
        whole: dict[str, Any] = {"schemaVersion": 1, "displayTimeUnit": "ms", "deviceProperties": [], "traceEvents": []}
        for number, path in enumerate(self._parts.values()):
            part = json.loads(path.read_text(encoding="utf-8"))
            base = whole.setdefault("baseTimeNanoseconds", part.get("baseTimeNanoseconds", 0))
            later = (part.get("baseTimeNanoseconds", 0) - base) / 1000  # microseconds, as events have them
            for event in part["traceEvents"]:
                if "ts" in event:
                    event["ts"] += later
                if isinstance(event.get("id"), int):
                    event["id"] += number * _ID_BLOCK
            whole["traceEvents"] += part["traceEvents"]
            whole["deviceProperties"] = part.get("deviceProperties") or whole["deviceProperties"]
        return whole


@contextmanager
def trace_file(path: Path) -> Iterator[Trace]:
    """A trace to be filled; it becomes the file ``path`` when the block ends, and nothing is there when it fails.

    Raises ValueError, before the block, when there is such a file.
    """
    if path.exists():
        raise ValueError(f"the trace {str(path)!r} exists already; traces are never overwritten")
    with tempfile.TemporaryDirectory(prefix="dspa-bench-trace-") as folder:
        trace = Trace(Path(folder))
        yield trace
        write_text(path, json.dumps(trace.merged()))
