"""The same pod's rules through each backend, in turns."""

import time
from collections import defaultdict
from functools import partial

from nodeagent.linux import syscalls as kernel
from nodeagent.netfilter.iptables_programs import Variant
from nodeagent.redirect import in_pod
from nodeagent.redirect.backend import Backends
from nodeagent.redirect.rules import RedirectSpec
from tests.lab.pod import call_in_thread
from tests.tools.bench.node import Node
from tests.tools.bench.report import Figure, median, milliseconds

_NAMES = {None: "nftables", Variant.NFT: "iptables-nft", Variant.LEGACY: "iptables-legacy"}


def figures(node: Node, spec: RedirectSpec, rounds: int) -> list[Figure]:
    """Set-up, unchanged and removal of each; every round in a namespace of its own."""
    times = call_in_thread(partial(_measure, node, spec, rounds))
    return [
        Figure(
            what=f"backend {_NAMES[variant]}: {what}",
            value=milliseconds(median(taken)),
            ratio=f"{median(taken) / median(times[None, what]):.1f} times nftables",
        )
        for (variant, what), taken in times.items()
    ]


def _measure(
    node: Node, spec: RedirectSpec, rounds: int
) -> dict[tuple[Variant | None, str], list[float]]:
    times: dict[tuple[Variant | None, str], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for variant in _NAMES:
            backends = Backends.choose(variant)
            (pod,) = node.pods(1)
            kernel.setns(pod.netns.fd, kernel.CLONE_NEWNET)
            for what, work in (
                ("set-up", partial(in_pod.ensure, spec, backends)),
                ("unchanged", partial(in_pod.ensure, spec, backends)),
                ("removal", partial(in_pod.remove, backends)),
            ):
                started = time.perf_counter()
                work()
                if number:  # the first round fills the caches
                    times[variant, what].append(time.perf_counter() - started)
    return times
