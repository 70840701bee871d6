"""The JavaScript that the page brings along: DataTables and Plotly, out of the installed packages that ship them."""

import base64
import gzip
import hashlib
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

_EXPORT = re.compile(r"\bexport\s*\{([^}]*)\}\s*;?")
_DEFAULT = re.compile(r"([\w$]+)\s+as\s+default\b")


class Script(NamedTuple):
    """A classic script and what a Content-Security-Policy lets it run by."""

    name: str
    text: str

    @property
    def source(self) -> str:
        """The source of the policy: it allows an inline element with exactly this text, however it got there."""
        return f"'sha256-{base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()}'"

    @property
    def packed(self) -> str:
        return pack(self.text.encode())


def pack(content: bytes) -> str:
    """``content`` gzipped, as base64: an alphabet that ends no element and starts none. The same for the same bytes."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


@cache
def plotly() -> Script:
    """Plotly, which sets ``window.Plotly``. ValueError where its package is not installed as it should be."""
    return Script("plotly", _shipped("plotly", "plotly/package_data/plotly.min.js"))


@cache
def datatables() -> Script:
    """DataTables as itables bundles it, set as ``window.DataTable``.

    The bundle is a module. An inline module can be imported by nobody without a data: or blob: source in the policy, so
    its export becomes an assignment. ValueError where the bundle is missing, or not built like that.
    """
    text = _shipped("itables", "itables/html/dt_bundle.js")
    exports = list(_EXPORT.finditer(text))
    named = _DEFAULT.search(exports[0].group(1)) if len(exports) == 1 else None
    if named is None:
        raise ValueError(
            f"itables {distribution('itables').version}: dt_bundle.js does not export DataTables as its default, so "
            "report.html cannot be made; install the version in constraints.txt"
        )
    (export,) = exports
    body = f"{text[: export.start()]}window.DataTable = {named.group(1)};{text[export.end() :]}"
    return Script("datatables", f'(() => {{"use strict";{body}\n}})();')


def own(*names: str) -> Script:
    """Our own files in assets/, as one script."""
    return Script(
        "page", "\n".join((Path(__file__).parent / "assets" / name).read_text(encoding="utf-8") for name in names)
    )


def _shipped(package: str, path: str) -> str:
    # Not by importing the package: that would load what it needs for other purposes.
    try:
        return Path(str(distribution(package).locate_file(path))).read_text(encoding="utf-8")
    except (PackageNotFoundError, FileNotFoundError) as missing:
        raise ValueError(
            f"report.html needs {path} of the package {package}, which is not there ({missing}); "
            f"install it: pip install --constraint constraints.txt {package}"
        ) from None
