"""How the iptables programs are run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.netfilter import iptables_programs
from nodeagent.netfilter.errors import RulesError
from nodeagent.netfilter.iptables_programs import Variant, save
from nodeagent.netfilter.iptables_variant import find_variant
from nodeagent.netfilter.rule import Family
from nodeagent.netns.netns import Netns
from nodeagent.netns.threads import NetnsThreads
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.iptables_backend import IptablesBackend
from tests.lab.lab import Lab
from tests.lab.pod import Pod
from tests.lab.xtables import SPEC, inside

pytestmark = pytest.mark.usefixtures("xtables_lock")


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Path]:
    """The only directory in which programs are looked for."""
    # In a context of its own: the lab needs its programs when it is taken down.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setattr(iptables_programs, "SYSTEM_PATH", "")
        yield tmp_path


@pytest.mark.parametrize("variant", Variant)
async def test_programs_run_in_the_netns_of_their_thread(
    lab: Lab, pod: Pod, variant: Variant
) -> None:
    """L10: a child of a thread that entered a pod works there, and nowhere else."""
    backend = IptablesBackend(variant)
    elsewhere = lab.add_pod("elsewhere")
    threads = NetnsThreads(2)
    try:
        with Netns.open(pod.path) as netns:
            await threads.run(netns, lambda: backend.ensure(SPEC))
    finally:
        threads.close()
    assert inside(pod, backend.inspect, SPEC) == ()
    assert not inside(elsewhere, backend.is_installed)


def test_a_look_needs_no_program(pod: Pod, programs: Path) -> None:
    """L7: where the kernel says that there is nothing, nothing is run to find out."""
    assert inside(pod, Backends.choose(None).leftovers) == ()
    assert inside(pod, find_variant, None, str(programs)) is Variant.NFT
    with pytest.raises(RulesError, match="iptables-nft-restore is not installed"):
        inside(pod, IptablesBackend(Variant.NFT).ensure, SPEC)


def test_a_program_that_hangs_is_ended(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stuck program costs its pod a retry, not the agent a thread."""
    program = programs / "iptables-nft-save"
    program.write_text(f"#!/bin/sh\necho $$ > {programs}/pid\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(iptables_programs, "DEADLINE", 0.5)
    with pytest.raises(RulesError, match="iptables-nft-save did not end within"):
        save(Variant.NFT, Family.V4)
    assert not os.path.exists(f"/proc/{(programs / 'pid').read_text().strip()}")
