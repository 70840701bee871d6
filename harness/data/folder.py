"""The data folder: $DSPA_BENCH_DATA, or dspa-bench in the user's cache."""

import os
from pathlib import Path

DATA_VARIABLE = "DSPA_BENCH_DATA"


def data_folder() -> Path:
    """Where external files lie; it need not exist. $DSPA_BENCH_DATA, else $XDG_CACHE_HOME/dspa-bench (~/.cache)."""
    given = os.environ.get(DATA_VARIABLE)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dspa-bench"


def data_file(path: str, benchmark: str) -> Path:
    """The file at ``path`` in the data folder; ValueError that says how to get it when it is not there."""
    found = data_folder() / path
    if not found.exists():
        raise ValueError(
            f"{found} is missing; get it with `dspa-bench data fetch {benchmark}`, "
            f"or set {DATA_VARIABLE} to the folder that has {path}"
        )
    return found
