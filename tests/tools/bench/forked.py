"""What peers do: set a pod up by running programs in it."""

import subprocess

from nodeagent.redirect import nft_rules as nftables
from nodeagent.redirect.rules import RedirectSpec

_ROUTES = """\
rule add fwmark 0x111/0xfff pref 32764 lookup 100
route replace local {everywhere} dev lo table 100
"""

# The rules of redirection.md with DNS capture, as far as iptables has the words.
_IPTABLES = """\
*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -s {probe} -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d {loopback} -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -d {probe} -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT ! -o lo -p udp -m udp --dport 53 -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15053
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
-A ISTIO_PRERT -p udp -m udp --sport 53 -m mark ! --mark 0x539/0xfff -j CT --zone 1
-A ISTIO_OUTPUT -p udp -m udp --dport 53 -m mark --mark 0x539/0xfff -j CT --zone 1
COMMIT
"""


def nft_and_ip(spec: RedirectSpec) -> None:
    """Give our own text to ``nft -f``, and the routes to ``ip -batch``, in three processes."""
    _run("nft -f -", nftables.render(spec, replacing=()))
    _routes()


def iptables_and_ip(spec: RedirectSpec) -> None:
    """``iptables-restore`` for each family, and ``ip -batch``, in four processes."""
    _run(
        "iptables-restore --noflush", _IPTABLES.format(probe=spec.probe_v4, loopback="127.0.0.0/8")
    )
    _run("ip6tables-restore --noflush", _IPTABLES.format(probe=spec.probe_v6, loopback="::1/128"))
    _routes()


def _routes() -> None:
    _run("ip -4 -batch -", _ROUTES.format(everywhere="0.0.0.0/0"))
    _run("ip -6 -batch -", _ROUTES.format(everywhere="::/0"))


def _run(command: str, text: str) -> None:
    subprocess.run(command.split(), input=text.encode(), check=True, stdout=subprocess.DEVNULL)
