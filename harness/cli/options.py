"""Options that several commands have."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Torch device, e.g. cpu or cuda.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a key of the suite; may be repeated."),
]
