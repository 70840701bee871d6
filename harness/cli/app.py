"""The program: the harness's own commands, those that installed packages bring along, and how it ends.

Modules of commands import what needs torch inside the commands, so that ``dspa-bench --help`` answers at once.
"""

from importlib.metadata import entry_points, version
from typing import Annotated

import typer
from typer.core import TyperGroup

from harness.cli import algebra, artifacts, devices, doctor, pass_through, publish, reference, run, serve, talk, verify
from harness.cli.data import data
from harness.cli.failures import one_line, show_tracebacks
from harness.cli.options import without_flag_types
from harness.cli.score import score
from harness.plugins import COMMANDS, declared
from harness.signals import exit_code_of_sigterm

ORDER = ("init", "run", "report", "view", "compare", "rejudge", "verify", "methods", "benchmarks", "judges", "describe")
ORDER += ("schema", "fit", "eval", "generate", "chat", "publish", "audit", "train-sae", "finetune-sae")
ORDER += ("lm-eval", "fastchat", "serve", "doctor", "devices")
ORDER += ("sandbox", "formats", "perf", "score", "mt-bench", "data")
"""How --help lists commands; any other comes after them."""


class InOrder(TyperGroup):
    """The program's commands, listed in ORDER wherever they are defined."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Names of all commands."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    name="dspa-bench",
    cls=InOrder,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Start with: `dspa-bench run sandbox` (no download, a few minutes on a laptop).",
)
without_flag_types()
for module in (run, algebra, verify, artifacts, talk, serve, publish, reference, pass_through, doctor, devices):
    app.add_typer(module.commands)
app.add_typer(score, name="score")
app.add_typer(data, name="data")
for entry in entry_points(group=COMMANDS):
    app.add_typer(entry.load())


def _version(asked: bool) -> None:
    if asked:
        from harness.provenance import DISTRIBUTION, git_state

        git = git_state()
        print(DISTRIBUTION, version(DISTRIBUTION), *([f"(commit {git['commit'][:12]})"] if git is not None else []))
        raise typer.Exit


@app.callback()
def program(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _debug: Annotated[
        bool,
        typer.Option("--debug", callback=show_tracebacks, is_eager=True, help="Print tracebacks of what goes wrong."),
    ] = False,
) -> None:
    """Compare preference-alignment methods on the same data, at a metered cost, through the field's own evaluators."""


def main() -> None:
    """Entry point: whatever goes wrong is one message and an exit code (see `harness.cli.failures`)."""
    with one_line(), exit_code_of_sigterm():
        declared(COMMANDS)
        app()
