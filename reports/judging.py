"""What the verdicts of paid models cost, from the ledger in the run folder."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness import markdown as md
from harness.judging.ledger import read_accounts
from reports.runfolder import Run
from reports.tables import rows_where

if TYPE_CHECKING:
    import pandas as pd


def judging(run: Run) -> "pd.DataFrame | None":
    """A row for each judge that was asked, with the sums of its `Account`; None for a run without a ledger."""
    import pandas as pd

    accounts = read_accounts(run.folder / "judging")
    if not accounts:
        return None
    rows = [
        {"judge": judge, **asdict(account), "models": " ".join(sorted(account.models))}
        for judge, account in accounts.items()
    ]
    return pd.DataFrame(rows).astype({"cost": float, "possible": float})


def judging_table(frame: "pd.DataFrame") -> str:
    """Judges x what was asked, what was sent and what it cost."""
    rows = [
        [
            md.escape(row["judge"]),
            md.escape(row["models"]) or md.EMPTY,
            *(md.number(row[key], 0) for key in ("requests", "reused", "calls", "answered")),
            md.number(row["calls"] - row["answered"], 0),
            *(md.number(row[key], 0) for key in ("prompt_tokens", "completion_tokens")),
            _cost(row["cost"], row["possible"]),
        ]
        for row in rows_where(frame)
    ]
    headers = ["judge", "answered as", "verdicts wanted", "at hand", "calls", "answered", "failed", "prompt tokens"]
    return md.table([*headers, "reply tokens", "cost"], rows, text_columns=2)


def _cost(cost: float, possible: float) -> str:
    """The known cost, and what calls with an unknown bill may have added."""
    if math.isnan(cost):
        return "no prices given"
    return f"{cost:.4f}" + (f" to {cost + possible:.4f}" if possible else "")
