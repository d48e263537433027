"""Redirection of others in a pod, which is nobody's to remove (L30)."""

from collections.abc import Callable

from nodeagent.netfilter.iptables_programs import Variant, restore
from nodeagent.netfilter.rule import Family
from tests.lab.pod import Pod
from tests.lab.xtables import SIDECAR, SIDECAR_NFT, inside, listing

NAT = "inet istio-ambient-nat"


def everything(pod: Pod) -> str:
    """All rules and routes, to the byte."""
    pod.shell("ip link set eth0 down")  # the kernel's own small talk would be counted
    return "".join(
        (
            pod.shell("nft list ruleset"),
            *(listing(pod, Variant.LEGACY, family) for family in Family),
            *(pod.shell(f"ip {family} rule") for family in ("-4", "-6")),
            *(pod.shell(f"ip {family} route show table all") for family in ("-4", "-6")),
        )
    )


def sidecar(mode: str, variant: Variant) -> Callable[[Pod], None]:
    def make(pod: Pod) -> None:
        for family in Family:
            inside(pod, restore, variant, family, SIDECAR[family][mode])
        if mode == "tproxy":
            pod.shell(
                "ip rule add fwmark 1337 lookup 133",
                "ip route add local default dev lo table 133",
            )

    return make


def sidecar_nft(pod: Pod) -> None:
    pod.shell("nft -f -", stdin=SIDECAR_NFT)


def tproxy(pod: Pod) -> None:
    """The kernel's own recipe for TPROXY (Documentation/networking/tproxy.rst)."""
    pod.shell(
        "iptables-nft -t mangle -N DIVERT",
        "iptables-nft -t mangle -A PREROUTING -p tcp -m socket -j DIVERT",
        "iptables-nft -t mangle -A DIVERT -j MARK --set-mark 1",
        "iptables-nft -t mangle -A DIVERT -j ACCEPT",
        "ip rule add fwmark 1 lookup 100",
        "ip route add local default dev lo table 100",
    )


def same_names(pod: Pod) -> None:
    """Chains and tables with all of our names, with something else in them."""
    for variant in Variant:
        text = "".join(
            f"*{table}\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n"
            "-A OUTPUT -j ISTIO_OUTPUT\n-A PREROUTING -j ISTIO_PRERT\n"
            "-A ISTIO_PRERT -p udp -j ACCEPT\n-A ISTIO_OUTPUT -p udp -j ACCEPT\nCOMMIT\n"
            for table in ("nat", "mangle", "raw")
        )
        for family in Family:
            inside(pod, restore, variant, family, text)
    pod.shell("nft -f -", stdin=f"table {NAT} {{ chain output {{ counter accept; }}; }}")


STRANGERS: dict[str, Callable[[Pod], None]] = {
    "sidecar-nft": sidecar("redirect", Variant.NFT),
    "sidecar-legacy": sidecar("redirect", Variant.LEGACY),
    "sidecar-tproxy-nft": sidecar("tproxy", Variant.NFT),
    "sidecar-tproxy-legacy": sidecar("tproxy", Variant.LEGACY),
    "sidecar-nftables": sidecar_nft,
    "tproxy": tproxy,
    "same-names": same_names,
}
