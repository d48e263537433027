"""Figures as a Markdown table, with the machine that they come from."""

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    value: str
    ratio: str = ""
    """To another line of the same run."""
    aim: str = ""
    met: bool | None = None
    """None: nothing was aimed at."""


def table(figures: Iterable[Figure]) -> str:
    """Make it ready to be pasted into docs/performance.md."""
    lines = ["| figure | measured | ratio | aim | met |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        met = {None: "", True: "yes", False: "**no**"}[figure.met]
        cells = (figure.what, figure.value, figure.ratio, figure.aim, met)
        lines.append(f"| {' | '.join(cells)} |".replace("|  ", "| "))
    return "\n".join(lines)


def machine() -> str:
    """Say in one line where the figures were taken."""
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        models = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    model = models[0] if models else platform.machine()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model}, {os.cpu_count()} cores; Linux {platform.release()}; "
        f"Python {platform.python_version()}; {_version('nft')}; {_version('iptables-restore')}; "
        f"load at the start {load}"
    )


def milliseconds(seconds: float) -> str:
    """`seconds` with three digits that count."""
    value = seconds * 1000
    if value >= 1000:
        return f"{seconds:.2f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.2f} ms"


def median(times: Sequence[float]) -> float:
    """The middle of `times`."""
    return statistics.median(times)


def percentile99(times: Sequence[float]) -> float:
    """What one in a hundred of `times` reaches."""
    return sorted(times)[min(len(times) - 1, len(times) * 99 // 100)]


def _version(program: str) -> str:
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.strip()
