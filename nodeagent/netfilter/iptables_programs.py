"""Running the iptables programs in the calling thread's netns.

A child process starts in the netns of the thread that starts it, whatever the netns of the
other threads is. The programs are needed to write; reading is done without them where it
can be, see `iptables_tables`.
"""

import os
import re
import shutil
import subprocess
from enum import StrEnum
from functools import lru_cache

from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.netfilter.rule import Family

_PROGRAMS = {Family.V4: "iptables", Family.V6: "ip6tables"}
SYSTEM_PATH = "/usr/sbin:/sbin"
"""Where the programs are on Debian, which is not in an ordinary user's ``PATH``."""
DEADLINE = 10.0
"""Seconds that a program may take; 3 to 6 ms are usual."""
_LOCK_DEADLINE = 5  # seconds
_LOCK_FILE = "XTABLES_LOCKFILE"
_LONGEST_REASON = 300
_CAP_NET_RAW = 13  # linux/capability.h
_SETS_SOCKET = "Can't open socket to ipset"
"""What either variant says that cannot open a raw socket for the match ``set``."""
_LINE = re.compile(r"\bline:? (\d+)")


class Variant(StrEnum):
    """Which of the kernel's two interfaces for iptables rules the programs use."""

    NFT = "nft"
    LEGACY = "legacy"


def save(variant: Variant, family: Family) -> str:
    """Return the listing of all tables that are there. Raises `RulesError`.

    Call it with `Variant.LEGACY` only after `iptables_legacy.table_names` has shown tables:
    with some kernels and versions of the program, listing makes them (L7).
    """
    return _run(f"{_PROGRAMS[family]}-{variant}-save", (), "")


def list_chain(variant: Variant, family: Family, table: str, chain: str) -> str:
    """Return the listing of one chain, which must be there, as ``-S`` prints it.

    With `Variant.NFT` the cost does not grow with others' rules. Raises `RulesError`.
    """
    return _run(f"{_PROGRAMS[family]}-{variant}", ("-t", table, "-S", chain), "")


def restore(variant: Variant, family: Family, text: str) -> None:
    """Apply `text`, in the language of ``iptables-restore``, without flushing what is there.

    Each table of the text is a transaction. Raises `RulesError`: then the table that was
    refused and those after it in the text are unchanged, and those before it are written.
    """
    # -w is the wait for the lock. Only legacy has a lock; the nft variant ignores the option.
    options = ("--noflush", "-w", str(_LOCK_DEADLINE))
    _run(f"{_PROGRAMS[family]}-{variant}-restore", options, text)


def _run(name: str, options: tuple[str, ...], text: str) -> str:
    program = _path(name)
    try:
        with wrap_oserror(f"start {program}"):
            done = subprocess.run(
                [program, *options],
                input=text,
                capture_output=True,
                encoding="utf-8",
                # A tenant's comment may be any bytes.
                errors="replace",
                env=_environment(),
                timeout=DEADLINE,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise RulesError(f"{name} did not end within {DEADLINE:g} s") from error
    if done.returncode != 0:
        reason = _reason(done.returncode, done.stderr, text)
        raw = "-legacy" in name or _SETS_SOCKET in reason
        lacking = "; CAP_NET_RAW is missing" if raw and _lacks_net_raw() else ""
        raise RulesError(f"{name} failed: {reason}{lacking}")
    return done.stdout


def _path(name: str) -> str:
    path = _find(name, f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}")
    if path is None:
        raise RulesError(f"{name} is not installed (package iptables)")
    return path


@lru_cache
def _find(name: str, directories: str) -> str | None:
    return shutil.which(name, path=directories)


def _environment() -> dict[str, str]:
    # The lock's usual place, /run, is not everybody's to write to.
    lock = {_LOCK_FILE: os.environ[_LOCK_FILE]} if _LOCK_FILE in os.environ else {}
    return {"LC_ALL": "C", **lock}


def _lacks_net_raw() -> bool:
    # The programs say no more than "Permission denied", or not even that.
    with open("/proc/thread-self/status", encoding="utf-8") as status:
        [effective] = (line.split()[1] for line in status if line.startswith("CapEff:"))
    return not int(effective, 16) >> _CAP_NET_RAW & 1


def _reason(status: int, errors: str, text: str) -> str:
    """Make one line of a program's complaint: what it said, and the rule it is about."""
    said = " ".join(errors.split()) or f"exit status {status}"
    reason = said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}…"
    lines = text.splitlines()
    found = _LINE.search(said)
    if found and 0 < int(found[1]) <= len(lines):
        return f"{reason} at: {lines[int(found[1]) - 1]}"
    return reason
