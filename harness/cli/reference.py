"""``dspa-bench methods``, ``benchmarks``, ``judges``, ``describe`` and ``schema``: what a suite can say."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.cli.options import AsJSON, command_group, print_json

if TYPE_CHECKING:
    from harness.experiment.reference import Described
    from harness.plugins import Registry

commands = command_group()


@commands.command(epilog="Example: `dspa-bench methods --json`")
def methods(as_json: AsJSON = False) -> None:
    """List the alignment methods: what a suite's variants may name, and `fit` takes."""
    from harness.method import METHODS

    _list(METHODS, as_json)


@commands.command(epilog="Example: `dspa-bench benchmarks`")
def benchmarks(as_json: AsJSON = False) -> None:
    """List the benchmarks that a suite may name."""
    from harness.benchmark import BENCHMARKS

    _list(BENCHMARKS, as_json)


@commands.command(epilog="Example: `dspa-bench judges`")
def judges(as_json: AsJSON = False) -> None:
    """List the kinds of judges that a suite may name."""
    from harness.judging import JUDGES

    _list(JUDGES, as_json)


@commands.command(epilog="Example: `dspa-bench describe dpo`")
def describe(
    name: Annotated[str, typer.Argument(help="A method, benchmark, judge or engine.", metavar="NAME")],
    as_json: AsJSON = False,
) -> None:
    """Say what a method, benchmark, judge or engine does, and every parameter of it: type, bounds, default, meaning."""
    from harness.experiment.reference import describe_named
    from harness.plugins import load_plugins

    load_plugins()
    found = describe_named(name)
    if as_json:
        print_json([one.to_json() for one in found])
        return
    for one in found:
        _show(one)


@commands.command(epilog="Example: `dspa-bench schema > suite.schema.json`")
def schema() -> None:
    """Print the JSON schema of suite files, by which editors complete and check them.

    In an editor with the YAML language server, the suite's first line is then `# yaml-language-server:
    $schema=suite.schema.json`.
    """
    from harness.experiment.reference import suite_schema
    from harness.plugins import load_plugins

    load_plugins()
    print(json.dumps(suite_schema(), indent=2))


def _list(registry: "Registry", as_json: bool) -> None:
    from harness.experiment.reference import described
    from harness.plugins import load_plugins

    load_plugins()
    found = described(registry)
    if as_json:
        print_json([{"name": one.name, "summary": one.summary, "source": one.source} for one in found])
        return
    table = Table(registry.noun, "what it is", box=SIMPLE_HEAD, pad_edge=False)
    for one in found:
        table.add_row(one.name, one.summary)
    Console(highlight=False).print(table)
    print("dspa-bench describe NAME says more of one: every parameter of it.")


def _show(one: "Described") -> None:
    console = Console(highlight=False)
    console.print(f"{one.name}: {one.kind} of {one.source}\n", markup=False)
    console.print(one.text, markup=False)
    if not one.parameters:
        console.print("\nIt has no parameters.\n")
        return
    table = Table("parameter", "type", "default", "what it is", box=SIMPLE_HEAD, pad_edge=False)
    for parameter in one.parameters:
        default = "required" if parameter.required else json.dumps(parameter.default, ensure_ascii=False, default=str)
        kind = f"{parameter.type}, {parameter.bounds}" if parameter.bounds else parameter.type
        table.add_row(*(cell.replace("[", r"\[") for cell in (parameter.name, kind, default, parameter.about)))
    console.print(table)
