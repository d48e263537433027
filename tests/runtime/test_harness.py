"""The container runtime of the tests is real: pods run, talk, and survive a restart of it."""

import os
from ipaddress import IPv6Address

from tests.runtime.containerd import Containerd


async def test_two_pods_talk(containerd: Containerd) -> None:
    """One sandbox reaches the other's process on both families, across a restart."""
    one = await containerd.run_sandbox("one", "shop", "uid-1")
    two = await containerd.run_sandbox("two", "shop", "uid-2")
    await containerd.run_container(one, "listen", "80")
    await containerd.restart()
    own = [str(address) for address in await containerd.addresses(two)]
    for address in await containerd.addresses(one):
        seen = IPv6Address(await containerd.dial(two, address, 80))
        assert str(seen.ipv4_mapped or seen) in own
    assert os.path.exists(await containerd.netns(one))


async def test_chain_that_cannot_end(containerd: Containerd) -> None:
    """A pod whose network cannot be taken down ends with its test nevertheless."""
    await containerd.run_sandbox("one", "shop", "uid-1")
    (containerd.bin_dir / "bridge").unlink()
