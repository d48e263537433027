"""What the tests of the iptables backend share: rules of others, and what stands in a pod."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from nodeagent.redirect.iptables_programs import Variant, save
from nodeagent.redirect.rules import Family
from tests.kernel.spec import spec
from tests.lab.pod import Pod

SPEC = spec(dns_capture=True, reroute_interfaces=("tap0",))

P = ParamSpec("P")
T = TypeVar("T")

ISTIO = """\
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -p tcp -j REDIRECT --to-ports 15001
COMMIT
*mangle
:ISTIO_PRERT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
COMMIT
"""
FOREIGN = """\
*filter
:ISTIO_OUTPUT - [0:0]
-A ISTIO_OUTPUT -p udp -j RETURN
-A OUTPUT -j ISTIO_OUTPUT
COMMIT
*nat
:APP - [0:0]
-A PREROUTING -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 82
-A OUTPUT -m comment --comment "it's a \\"quote\\" -j ISTIO_OUTPUT" -j APP
-A APP -p udp -j RETURN
COMMIT
*mangle
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p udp -j MARK --set-xmark 0x7/0xff
COMMIT
"""


def inside(pod: Pod, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return pod.run(lambda: function(*args, **kwargs))


def listing(pod: Pod, variant: Variant, family: Family = Family.V4) -> str:
    """Everything that iptables has in `pod`, without the counters and the date."""
    lines = inside(pod, save, variant, family).splitlines()
    return "\n".join(line.partition(" [")[0] for line in lines if not line.startswith("#"))


def section(text: str, table: str) -> str:
    return text[text.index(f"*{table}") :].partition("COMMIT")[0]
