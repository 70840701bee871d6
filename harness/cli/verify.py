"""``dspa-bench verify``: whether a run folder still is what was written to it."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import AsJSON, command_group, print_json

commands = command_group()


@commands.command(epilog="Example: `dspa-bench verify runs/sandbox`")
def verify(run: Annotated[Path, typer.Argument(help="Run folder.")], as_json: AsJSON = False) -> None:
    """Read every file of a run folder and compare it with the checksum it was finished with; changes nothing.

    `run` and `report` look too, but read files of 16 MiB or more only when size or time have changed.

    Exit code 0: every file of every cell that is over is what was written. 1: something is not (it is named, with the
    command that makes it again). 2: not a run folder.
    """
    from harness.run_folder import RunFolder
    from harness.run_folder.verify import repair_command, undisturbed, unverified
    from harness.run_folder.verify import verify as verified

    if not (run / "cells").is_dir():
        raise ValueError(
            f"{str(run)!r} is not a run folder: it has no cells; give the --out folder of `dspa-bench run`"
        )
    folder = RunFolder(run)
    found = undisturbed(run, lambda: verified(RunFolder(run), thorough=True))
    if found and as_json:
        print_json({"damaged": found, "mend": repair_command(folder)})
    elif found:
        print("\n".join(found))
        print(f"{len(found)} files are not what was written; this makes them again: {repair_command(folder)}")
    if found:
        raise typer.Exit(1)
    states = {cell.name: folder.cell(cell.name).state for cell in folder.plan.cells}
    over, old = [name for name, state in states.items() if state is not None], unverified(folder)
    files = sum(len(state.files or ()) for state in states.values() if state is not None)
    if as_json:
        counts = {"cells": len(states), "over": len(over), "without_checksums": len(old), "files": files}
        print_json({"damaged": [], "mend": None, **counts})
        return
    print(f"{len(over) - len(old)} of {len(states)} cells verified, {files} files in them")
    if old:
        print(f"{len(old)} cells are of a version that kept no checksums: readable, and not verified")
    if len(over) < len(states):
        print(f"{len(states) - len(over)} cells are not over")
