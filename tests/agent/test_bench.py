"""The bench keeps working. Needs: nft, ip and iptables-restore; takes a few seconds."""

import asyncio
import sys

_FIGURES = (
    "in-pod set-up",
    "the same by forking `nft -f`",
    "the same by `iptables-restore` twice",
    "the raw netlink batch (floor)",
    "unchanged second set-up",
    "inspection",
    "removal",
    "enrolment of one pod, 3 present",
    "6 pods at once",
    "linear: time per pod",
    "snapshot of 6 to a client that only answers",
    "snapshot of 6 to a fresh `ztunnel-stub`",
    "the agent's memory, 0 pods",
    "the agent's memory, 6 pods",
    "the watch and all else the agent keeps of a pod",
    "the agent's processor time, 14 quiet pods",
    "mend of a deleted rule, 14 present",
    "mend of a flushed table, 14 present",
    "mend of a deleted policy rule, 14 present",
    "the agent's processor time while one pod",
    "host probe set, 20 addresses: one added",
    "backend nftables: set-up",
    "backend iptables-nft: unchanged",
    "backend iptables-legacy: removal",
    "running pod joins, options off",
    "running pod leaves, options on",
    "the agent's memory after 16 enrolments and removals",
)


async def test_quick_bench_prints_every_figure() -> None:
    """``python -m tests.bench --quick`` ends well, with each figure of the table once (L25)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "--quick"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    lines = output.decode().splitlines()
    missing = [
        figure for figure in _FIGURES if sum(line.startswith(f"| {figure}") for line in lines) != 1
    ]
    assert not missing, output.decode()
