"""The result of one check, and how results are printed."""

from collections.abc import Sequence
from dataclasses import dataclass

from nodeagent.log import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check; `remedy` says what to do where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def good(name: str, detail: str) -> Check:
    """A check that has passed."""
    return Check(name=name, ok=True, detail=detail)


def bad(name: str, detail: str, remedy: str) -> Check:
    """A check that has failed: the agent cannot do all of its work before `remedy` is done."""
    return Check(name=name, ok=False, detail=detail, remedy=remedy)


def lines(checks: Sequence[Check]) -> list[str]:
    """One line for each check, with what is wrong and the remedy."""
    width = max((len(check.name) for check in checks), default=0)
    return [_line(check, width) for check in checks]


def show(checks: Sequence[Check]) -> int:
    """Print them; the exit status: 1 where something has to be done."""
    for line in lines(checks):
        print(line)
    return int(not all(check.ok for check in checks))


def _line(check: Check, width: int) -> str:
    mark = "ok  " if check.ok else "FAIL"
    remedy = "" if check.ok else f"; remedy: {check.remedy}"
    return printable(f"{mark}  {check.name:{width}}  {check.detail}{remedy}")
