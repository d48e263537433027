"""libnftables among more descriptors than select() can name. Needs: nothing but the kernel."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.libnftables import Library
from nodeagent.netfilter.nft import apply
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.redirect.nft_backend import read
from nodeagent.redirect.nft_rules import TABLE_NAMES, render
from tests.descriptors import open_descriptors
from tests.eventually import eventually
from tests.lab.spec import spec

_CROWDED = """
import os, sys
from nodeagent.linux.fd_limit import raise_nofile_limit
from nodeagent.probes.nft_table import ProbeTable
from nodeagent.netfilter.nft import apply
from nodeagent.netfilter.scratch import in_scratch_netns

def work():
    apply("add table inet one")
    table = ProbeTable()
    table.apply("add table inet two")
    table.apply("delete table inet two")
    table.close()

raise_nofile_limit(4096)
null = os.open(os.devnull, os.O_RDONLY)
while os.dup(null) < 2000:
    pass
in_scratch_netns(work)
print("alive")
"""


def test_no_number_below_1024_is_free() -> None:
    """L33: with 2,000 descriptors open, the library works; on its own it ends the process."""
    run = subprocess.run(
        [sys.executable, "-c", _CROWDED], capture_output=True, text=True, check=False
    )
    assert run.returncode != -signal.SIGABRT, run.stderr
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr


def test_the_netns_is_that_of_the_thread_that_opens() -> None:
    """What is applied is in the netns of the caller, and nowhere else."""

    def work() -> set[str]:
        apply(render(spec()))
        return set(read())

    assert in_scratch_netns(work) <= set(TABLE_NAMES)
    assert in_scratch_netns(read) == {}


def test_refusal_is_told() -> None:
    """A text that cannot be applied raises, and the library can be used again."""

    def work() -> None:
        library = Library()
        try:
            with pytest.raises(RulesError, match="syntax error"):
                library.apply("no such thing")
            library.apply("add table inet three")
        finally:
            library.close()

    in_scratch_netns(work)


async def test_nothing_stays() -> None:
    """Neither a thread nor a descriptor is left, and none of the caller's was touched."""
    before = open_descriptors()
    read_end, write_end = os.pipe()
    for _ in range(5):
        in_scratch_netns(lambda: apply("add table inet four"))
    os.write(write_end, b"open still")
    assert os.read(read_end, 100) == b"open still"
    os.close(read_end)
    os.close(write_end)
    await eventually(
        lambda: not any(thread.name == "libnftables" for thread in threading.enumerate())
    )
    assert open_descriptors() == before
