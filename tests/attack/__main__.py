"""``python -m tests.attack [PART[:NUMBER,...] ...] [--only=PATTERN]``: runs parts of the attack, prints their table.

As many parts at once as there are processors. Exit code 1 if any of it went wrong. A pattern chooses among the cases of
malformed inputs by kind and name.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.attack.ground import ONLY, rows_of
from tests.attack.table import markdown

MALFORMED = ("bad_suites", "bad_artifacts", "bad_models", "bad_data", "fuzz")
PARTS = ("kill_series:100,0", "kill_series:0,50", "damages", *MALFORMED)
"""The longest first."""


def main(arguments: list[str]) -> int:
    """Exit code."""
    names = [name for name in arguments if not name.startswith("--only=")]
    only = [name.removeprefix("--only=") for name in arguments if name not in names]
    if only:
        os.environ[ONLY] = "|".join(only)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork of a process that has threads hangs when it begins others
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = [row for part in pool.map(rows_of, names or PARTS) for row in part]
    print(markdown(rows))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
