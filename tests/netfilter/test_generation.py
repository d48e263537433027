"""The kernel's count of transactions."""

from nodeagent.netfilter.generation import own_generation
from tests.lab.pod import Pod


def test_generation_grows_with_each_transaction(pod: Pod) -> None:
    """Reading leaves the count as it is, and each write changes it."""
    before = pod.run(own_generation)
    pod.shell("nft list ruleset")
    assert pod.run(own_generation) == before
    pod.shell("nft add table ip foreign")
    assert pod.run(own_generation) != before
