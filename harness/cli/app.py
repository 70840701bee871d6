"""The program: the harness's own commands, those that installed packages bring along, and how it ends.

Modules of commands import what needs torch inside the commands, so that ``dspa-bench --help`` answers at once.
"""

import errno
import sys
from importlib.metadata import entry_points

import typer
from typer.core import TyperGroup

from harness.cli import artifacts, doctor, pass_through, run, verify
from harness.cli.data import data
from harness.cli.score import score
from harness.cli.signals import exit_code_of_sigterm
from harness.plugins import COMMANDS, declared

ORDER = ("run", "report", "verify", "fit", "eval", "generate", "audit", "train-sae", "finetune-sae", "lm-eval")
ORDER += ("fastchat", "doctor", "sandbox", "formats", "perf", "score", "mt-bench", "data")
"""How --help lists commands; any other comes after them."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room: the disk, the user's share of it, or the size of one file."""


class InOrder(TyperGroup):
    """The program's commands, listed in ORDER wherever they are defined."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Names of all commands."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    name="dspa-bench",
    cls=InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compare preference-alignment methods on the same data, at a metered cost, "
    "through the field's own evaluators.",
    epilog="Start with: `dspa-bench run tasks/suites/sandbox.yaml` (no download, a few minutes on a laptop).",
)
for module in (run, verify, artifacts, pass_through, doctor):
    app.add_typer(module.commands)
app.add_typer(score, name="score")
app.add_typer(data, name="data")
for entry in entry_points(group=COMMANDS):
    app.add_typer(entry.load())


def main() -> None:
    """Entry point: a ValueError is the user's to mend, so it is one message, no traceback, exit code 2.

    So is a full disk, with exit code 1: nothing half-written stays, and what was done is not done again.
    """
    try:
        with exit_code_of_sigterm():
            declared(COMMANDS)
            app()
    except ValueError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        place = f" ({problem.filename})" if problem.filename else ""
        print(f"error: the disk is full{place}; free some space and give the same command again", file=sys.stderr)
        sys.exit(1)
