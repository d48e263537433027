"""What a tenant's many interface lists cost others (L34)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeagent.netfilter.nft import apply
from nodeagent.redirect import nft_backend
from nodeagent.redirect.nft_backend import reference
from tests.eventually import PATIENCE
from tests.lab.spec import spec


def test_interface_lists_make_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the rules for a list are found out, pods without a list have theirs."""
    begun, finish = threading.Event(), threading.Event()

    def slow(text: str) -> None:
        if "vm0" in text:
            begun.set()
            finish.wait(PATIENCE)
        apply(text)

    monkeypatch.setattr(nft_backend, "apply", slow)
    with ThreadPoolExecutor(2) as pool:
        listed = pool.submit(reference, spec(reroute_interfaces=("vm0", "only-here")))
        try:
            assert begun.wait(PATIENCE)
            assert pool.submit(reference, spec(keep_open=True)).result(PATIENCE / 2)
        finally:
            finish.set()
        assert listed.result(PATIENCE)


def test_interface_lists_push_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many lists there are, the rules of pods without one are found out once."""
    plain = reference(spec())
    monkeypatch.setattr(nft_backend, "in_scratch_netns", lambda _: {})
    for number in range(100):
        reference(spec(reroute_interfaces=(f"list{number}",)))
    assert reference(spec()) is plain
