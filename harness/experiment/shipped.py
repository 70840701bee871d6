"""Suites that come inside installed packages and are run by their name, from any folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.plugins import SUITES, alike, declared

MADE = "../../build/"
"""How a suite of ours calls the folder of what has to be fetched or made first, from its own folder."""


@dataclass(frozen=True)
class Shipped:
    """A suite inside a package."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def comment(self) -> list[str]:
        """The lines of the comment that the file begins with."""
        text = self.path.read_text(encoding="utf-8")
        found = re.match(r"(#.*\n)*", text)
        return [line.removeprefix("#").removeprefix(" ") for line in found[0].splitlines()] if found else []

    @property
    def summary(self) -> str:
        """The first sentence of that comment."""
        return re.split(r"(?<=\.)\s", " ".join(self.comment))[0]

    def how_to_make(self, complaints: str) -> str:
        """What is to be added to ``complaints`` that miss files which are fetched or made first: the commands for that.

        They are those in the suite's first comment, up to the one that runs it.
        """
        found = [line for line in self.comment if line.startswith("  ")]
        steps = found[: next((n for n, line in enumerate(found) if line.startswith("  dspa-bench run ")), None)]
        if not steps or str(Path("build").absolute()) not in complaints:
            return ""
        return "\n".join([f"\n{self.name} needs files that are fetched or made first, in this folder:", *steps])

    def placed(self, value: Any) -> Any:
        """``value`` of the suite with what is fetched or made first in the working folder's ``build``."""
        if isinstance(value, dict):
            return {key: self.placed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.placed(one) for one in value]
        if isinstance(value, str) and value.startswith(MADE):
            return str(Path("build", value.removeprefix(MADE)).absolute())
        return value


def shipped() -> dict[str, Shipped]:
    """Name -> suite, of all installed packages."""
    folders = [Path(entry.load()) for entry in declared(SUITES)]
    return {path.stem: Shipped(path) for folder in folders for path in sorted(folder.glob("*.yaml"))}


def find_shipped(name: str | Path) -> Shipped | None:
    """The shipped suite called ``name`` where there is no such file; None for a file.

    Raises ValueError, naming those there are, for a name that is neither.
    """
    if Path(name).exists() or Path(name).name != str(name):
        return None
    known = shipped()
    if str(name) not in known:
        raise ValueError(
            f"there is no suite file {str(name)!r} here, and no suite of that name comes with dspa-bench; those that "
            f"do: {', '.join(known)}{alike(str(name), known)}"
        )
    return known[str(name)]
