"""What tests of iptables share: rules of others, what is in a pod, and programs that fail."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from nodeagent.netfilter.iptables_programs import Variant, save
from nodeagent.netfilter.rule import Family
from tests.lab.pod import Pod
from tests.lab.spec import spec

SPEC = spec(dns_capture=True, reroute_interfaces=("tap0",))

P = ParamSpec("P")
T = TypeVar("T")

NO_TABLE = "ip6tables v1.8.9 (legacy): can't initialize ip6tables table `nat': Table does not exist"
NO_FAMILY = "ip6tables v1.8.9: can't initialize: Address family not supported by protocol"

_AMBIENT = """\
*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark \
--nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -i vm0 -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_PRERT -i vm0 -p tcp -j RETURN
-A ISTIO_PRERT -s {probe} -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -d {probe} -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d {loopback} -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 \
-j REDIRECT --to-port 15053
-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
*raw
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
COMMIT
"""
ISTIO = {
    Family.V4: _AMBIENT.format(probe="169.254.7.127", loopback="127.0.0.1/32"),
    Family.V6: _AMBIENT.format(probe="fd16:9254:7127:1337:ffff:ffff:ffff:ffff", loopback="::1/128"),
}
"""What Istio's ambient agent of 1.27 writes into a pod."""
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


ISTIO_TPROXY = """\
*mangle
:ISTIO_OUTPUT - [0:0]
:ISTIO_PRERT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark \
--nfmask 0xffffffff --ctmask 0xffffffff
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d 127.0.0.1/32 -i lo -p tcp -j ACCEPT
-A ISTIO_PRERT -p tcp -m tcp --dport 15008 -m mark ! --mark 0x539/0xfff -j TPROXY \
--on-port 15008 --on-ip 0.0.0.0 --tproxy-mark 0x111/0xfff
-A ISTIO_PRERT -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j TPROXY \
--on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x111/0xfff
COMMIT
*nat
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
"""
"""What it wrote until 1.23, in IPv4."""
_SIDECAR = """\
*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s {pass_through} -o lo -j RETURN
-A ISTIO_OUTPUT ! -d {loopback} -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 \
-j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT ! -d {loopback} -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 \
-j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d {loopback} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"""
_SIDECAR_TPROXY = """\
*mangle
:ISTIO_DIVERT - [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_TPROXY - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark
-A OUTPUT -p tcp -o lo -m mark --mark 0x539 -j RETURN
-A OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK --restore-mark
-A ISTIO_DIVERT -j MARK --set-mark 1337
-A ISTIO_DIVERT -j ACCEPT
-A ISTIO_INBOUND -p tcp -m mark --mark 0x539 -j RETURN
-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY
-A ISTIO_TPROXY ! -d {loopback} -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006
COMMIT
"""
SIDECAR = {
    family: {
        "redirect": _SIDECAR.format(loopback=loopback, pass_through=pass_through),
        "tproxy": (_SIDECAR + _SIDECAR_TPROXY).format(loopback=loopback, pass_through=pass_through),
    }
    for family, loopback, pass_through in (
        (Family.V4, "127.0.0.1/32", "127.0.0.6/32"),
        (Family.V6, "::1/128", "::6/128"),
    )
}
"""What istio-init or Istio's CNI plugin writes for a sidecar, by its mode of interception."""
SIDECAR_NFT = """\
table inet istio-proxy-nat {
    chain prerouting { type nat hook prerouting priority -100; jump istio-inbound; }
    chain output { type nat hook output priority -100; jump istio-output; }
    chain istio-inbound { tcp dport 15008 return; meta l4proto tcp jump istio-in-redirect; }
    chain istio-in-redirect { meta l4proto tcp redirect to :15006; }
    chain istio-redirect { meta l4proto tcp redirect to :15001; }
    chain istio-output {
        oifname "lo" ip saddr 127.0.0.6 return
        meta skuid 1337 return
        meta skgid 1337 return
        ip daddr 127.0.0.1 return
        jump istio-redirect
    }
}
"""


def marked(table: str, chain: str) -> str:
    """Input for ``iptables-restore``: a chain that an earlier version of this agent has left."""
    return f"""\
*{table}
:{chain} - [0:0]
-A {chain} -m comment --comment "nodeagent layout 0"
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


def break_programs(
    directory: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    """Let the programs of that name say `message` and fail."""
    for variant in Variant:
        for action in ("", "-save", "-restore"):
            program = directory / f"{pattern}-{variant}{action}"
            program.write_text(
                f"#!/bin/sh\ncat >/dev/null\necho {shlex.quote(message)} >&2\nexit 3\n"
            )
            program.chmod(0o755)
    path = f"{directory}:/usr/sbin:/sbin:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
