"""``dspa-bench doctor``: what this machine and installation have, what is missing, how to mend it."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import typer
from packaging.requirements import Requirement

from harness.cli.options import AsJSON, command_group, print_json

commands = command_group()

_WIDTH = 576
"""Of SmolLM2-135M."""
_WORTH_IT = 1.5
"""How many times as fast bfloat16 has to be, to be offered: decoding and small products gain less."""


@dataclass(frozen=True)
class Finding:
    """One line: ``mend`` is None when all is well, else what to do about it."""

    what: str
    found: str
    mend: str | None = None
    optional: bool = False


@commands.command(epilog="Example: `dspa-bench doctor`")
def doctor(as_json: AsJSON = False) -> None:
    """Check machine and installation: what is missing and how to mend it (exit code 1 if something is)."""
    findings = [*_packages(), *_machine(), *_plugins(), *_data()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    for finding in () if as_json else findings:
        mark = "ok     " if finding.mend is None else "note   " if finding.optional else "MISSING"
        print(f"{mark}  {finding.what}: {finding.found}")
        if finding.mend is not None:
            print(f"         {finding.mend}")
    raise typer.Exit(1 if any(f.mend is not None and not f.optional for f in findings) else 0)


def _packages() -> Iterator[Finding]:
    from harness.provenance import DISTRIBUTION

    extras = set(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ()) - {"all", "dev"}
    for text in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        of = "" if marker is None else next((one for one in sorted(extras) if marker.evaluate({"extra": one})), None)
        if of is None:
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            mend = f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'"
            about = f"not installed (extra {of})" if of else "not installed"
            yield Finding(requirement.name, about, mend, optional=bool(of))
            continue
        wrong = not requirement.specifier.contains(version, prereleases=True)
        mend = f"needs {requirement.specifier}: pip install -c constraints.txt '{requirement}'" if wrong else None
        yield Finding(requirement.name, version, mend)


def _machine() -> Iterator[Finding]:
    import torch

    from harness.provenance import machine

    state = machine()
    yield Finding("python", f"{state['python']} on {state['platform']}")
    yield Finding("cores", f"{state['cores']} ({state['cpu']}), torch uses {torch.get_num_threads()} threads")
    memory = state["memory_bytes"]
    mend = "the sandbox suite needs 4 GB; use --set execution.workers=1" if memory < 4 * 10**9 else None
    yield Finding("memory", f"{memory / 10**9:.1f} GB", mend, optional=True)
    yield _bfloat16()
    mend = None if state["gpu"] else "not needed for the sandbox; real models want a CUDA build of torch"
    yield Finding("accelerator", state["gpu"] or "none", mend, optional=True)


def _bfloat16() -> Finding:
    """What this CPU makes of bfloat16, by matrix products of a small model's width: half a second."""
    import torch

    from harness.experiment.outlook import product_rate

    rates = [product_rate(_WIDTH, dtype=dtype, device="cpu") for dtype in (torch.bfloat16, torch.float32)]
    ratio = rates[0] / rates[1]
    mend = "worth it for models from Hugging Face: `base: {id: ..., dtype: bfloat16}` in a suite halves memory, too"
    found = f"matrix products on this CPU run {ratio:.2g} times as fast as in float32"
    return Finding("bfloat16", found, mend if ratio >= _WORTH_IT else None, optional=True)


def _plugins() -> Iterator[Finding]:
    from harness.benchmark import BENCHMARKS
    from harness.judging import JUDGES
    from harness.method import METHODS
    from harness.plugins import load_plugins

    try:
        load_plugins()
    except (ImportError, ValueError) as problem:
        yield Finding("plugins", str(problem), "install the project: pip install -c constraints.txt -e .")
        return
    for registry in (METHODS, BENCHMARKS, JUDGES):
        yield Finding(f"{registry.noun}s", ", ".join(registry) or "none")


def _data() -> Iterator[Finding]:
    from harness.data.external import DATA_VARIABLE, data_folder, missing

    folder = data_folder()
    if os.environ.get(DATA_VARIABLE) and not folder.is_dir():
        yield Finding(DATA_VARIABLE, f"{folder} is no folder", "set it to an existing folder, or unset it")
        return
    yield Finding("data folder", str(folder))
    for benchmark, paths in missing(folder).items():
        mend = f"dspa-bench data fetch {benchmark} (the sandbox suite needs none of it)"
        yield Finding(f"data for {benchmark}", f"missing: {', '.join(paths)}", mend, optional=True)
