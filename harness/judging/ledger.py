"""What judging by paid models costs: every request that was sent, what it brought, and a cap on the sum."""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from harness.judging.verdicts import Journal, Row

FILE = "ledger.jsonl"
MEND = (
    "what was spent is no longer known, so put the file back from a copy, or go on in a new folder with an account of "
    "its own: dspa-bench run SUITE --out NEW --reuse RUN copies the cells that are complete; an evaluation "
    "(dspa-bench eval) begins anew in another --out"
)
Outcome = Literal["answered", "useless", "refused", "lost"]


class CapReached(Exception):
    """The next call could cost more than is left."""


@dataclass
class Account:
    """Sums over the calls to one judge; amounts are in the currency of its prices."""

    requests: int = 0  # verdicts that were wanted
    reused: int = 0  # those for which nothing had to be sent
    calls: int = 0  # HTTP requests that were sent, or tried to be; the next five are what became of them
    answered: int = 0  # they brought a text
    useless: int = 0  # they brought something else: an empty text, a part of one, no JSON
    refused: int = 0  # an error status came back, or the server was not reached
    lost: int = 0  # nothing came back in time; the server may charge for it
    unsettled: int = 0  # the process was killed before anything came back; the server may charge for it
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None  # what was charged, by the server's token counts; None without prices
    possible: float | None = None  # what calls whose bill is not known can have cost at most; None without prices
    models: set[str] = field(default_factory=set)  # what the server called the model that answered

    def charge(self, most: float | None, cost: float | None) -> None:
        """Add a call that could cost ``most`` (None: the judge has no prices); ``cost`` is None for an unknown bill."""
        if most is not None:
            self.cost = (self.cost or 0.0) + (cost or 0.0)
            self.possible = (self.possible or 0.0) + (most if cost is None else 0.0)


class Balance:
    """The accounts, by judge, that rows of a ledger add up to. Calls that never ended are still open."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.accounts: dict[str, Account] = defaultdict(Account)
        self.open: dict[str, tuple[str, float | None]] = {}
        for row in rows:
            self.enter(row)

    def enter(self, row: Row) -> None:
        """Add one row; ValueError when it is not a ledger's."""
        try:
            if row["event"] == "batch":
                account = self.accounts[row["judge"]]
                account.requests += row["requests"]
                account.reused += row["reused"]
            elif row["event"] == "shared":
                self.accounts[row["judge"]].reused += 1
            elif row["event"] == "sent":
                self.accounts[row["judge"]].calls += 1
                self.open[row["call"]] = row["judge"], row["most"]
            else:
                self._end(row)
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"not a row of a ledger ({type(problem).__name__}: {problem}): {row}") from None

    def closed(self) -> dict[str, Account]:
        """The accounts when no process is judging any more: open calls are unsettled and may have cost their most."""
        for judge, most in self.open.values():
            self.accounts[judge].unsettled += 1
            self.accounts[judge].charge(most, None)
        self.open.clear()
        return self.accounts

    def _end(self, row: Row) -> None:
        judge, most = self.open.pop(row["call"])
        account, outcome = self.accounts[judge], row["outcome"]
        if outcome not in get_args(Outcome):
            raise ValueError(f"unknown outcome {outcome!r}")
        setattr(account, outcome, getattr(account, outcome) + 1)
        account.prompt_tokens += row["prompt_tokens"]
        account.completion_tokens += row["completion_tokens"]
        account.models |= {row["model"]} - {""}
        account.charge(most, row["cost"])


class Ledger:
    """ledger.jsonl in ``folder``: one for all processes and judges of a run, a synced line for each event."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / FILE, MEND)
        self._balance = Balance()

    def batch(self, judge: str, verb: str, *, requests: int, reused: int) -> None:
        """``requests`` verdicts are wanted, of which ``reused`` need nothing to be sent."""
        self._enter("batch", judge=judge, verb=verb, requests=requests, reused=reused)

    def shared(self, judge: str) -> None:
        """One more verdict needs nothing to be sent, because another process was just asking for it."""
        self._enter("shared", judge=judge)

    def send(self, judge: str, address: str, *, most: float | None, cap: float | None) -> str:
        """Enter a call that is about to be sent and may cost up to ``most``; returns its number.

        Raises CapReached when it could bring the sum above ``cap``; open calls count with the most they may cost.
        """

        def check(news: list[Row]) -> None:
            for row in news:
                self._balance.enter(row)
            spent = sum(
                (account.cost or 0.0) + (account.possible or 0.0) for account in self._balance.accounts.values()
            )
            pending = sum(most or 0.0 for _, most in self._balance.open.values())
            if cap is not None and spent + pending + (most or 0.0) > cap * (1 + 1e-9):  # a rounding error is no excess
                raise CapReached(
                    f"spending cap of {cap:g} reached: {spent:.4g} is spent, {pending:.4g} may be charged for calls "
                    f"without an answer, and the next may cost {most or 0.0:.4g}; run again with a higher max_cost"
                )

        call = uuid.uuid4().hex[:12]
        self._enter("sent", check, call=call, judge=judge, address=address, most=most)
        return call

    def end(
        self,
        call: str,
        outcome: Outcome,
        *,
        cost: float | None,
        why: str = "",
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        model: str = "",
    ) -> None:
        """Enter what became of a call, and ``why`` it failed; ``cost`` is None when its bill is not known."""
        row: Row = {"call": call, "outcome": outcome, "why": why, "cost": cost, "model": model}
        self._enter("ended", **row, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def _enter(self, event: str, check: Callable[[list[Row]], None] | None = None, **row: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._journal.append({"event": event, **row, "at": now}, check)


def read_accounts(folder: Path) -> dict[str, Account]:
    """{judge: account} of the ledger in ``folder``, empty where there is none; for when nobody is judging there."""
    return Balance(Journal(folder / FILE, MEND).news()).closed()
