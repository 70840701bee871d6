"""``python -m tests.attack [PART ...] [--only=PATTERN]``: runs the parts of the attack and prints their table.

Exit code 1 if any of it went wrong. A pattern chooses among the cases of malformed inputs by kind and name.
"""

import os
import sys
from importlib import import_module

from tests.attack.ground import ONLY, attack, ground
from tests.attack.table import Row, markdown

PARTS = ("bad_suites", "bad_models", "bad_artifacts", "bad_data", "fuzz", "damages", "kill_series")


def main(arguments: list[str]) -> int:
    """Exit code."""
    names = [name for name in arguments if not name.startswith("--only=")]
    only = [name.removeprefix("--only=") for name in arguments if name not in names]
    if only:
        os.environ[ONLY] = "|".join(only)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rows: list[Row] = []
    for name in names or PARTS:
        part = import_module(f"tests.attack.{name}")
        if hasattr(part, "cases"):
            with ground() as whole:
                rows += attack(part.cases(), whole)
        else:
            rows += part.run()
        print(f"{name}: over", file=sys.stderr, flush=True)
    print(markdown(rows))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
