"""Policy rules on the host for probes of pods that have an AWS branch interface.

On EKS with Security Groups for Pods (mode strict), the AWS VPC CNI routes what such a pod sends
by a rule ``iif VETH lookup TABLE``, through the pod's branch interface into the VPC; the
host's route to the pod's address stands in TABLE only. So a probe takes the way through the
VPC too, which drops it: it comes from the host probe address, which the VPC does not know.

For each address of an enrolled pod that has such a rule, two rules go right before it:

- TCP of the host's own processes to the address looks up TABLE, so it goes by the pod's
  veth. All of that is what gets the host probe address as its source.
- TCP of the address that comes from the veth, to one of the ports that the host takes for
  connections of its own, looks up the table `local`. Netfilter translates the probe address
  back before the kernel routes a reply, so no rule can be told by it.

What else the pod sends keeps its way, and its security groups; so does what others send to
it. The rules carry `OWN_PROTOCOL`, and the pod's address: so no memory is needed to remove
what is stale.
"""

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import structlog
from pyroute2.netlink.rtnl import RTM_DELRULE, RTM_NEWRULE

from nodeagent.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    MalformedError,
    Netlink,
    attribute,
    attributes,
)
from nodeagent.linux.policy_routing import (
    FR_ACT_TO_TBL,
    FRA_DST,
    FRA_IIFNAME,
    FRA_PRIORITY,
    FRA_PROTOCOL,
    FRA_SRC,
    FRA_TABLE,
    HEADER,
    OWN_PROTOCOL,
    RTA_DST,
    RTA_OIF,
    header,
    list_routes,
    list_rules,
    lookup,
    number,
    numbers,
    preference,
    rule_meaning,
    would_take,
)
from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.netfilter.rule import Family

log = structlog.get_logger()

_EARLY_DEMUX = "/proc/sys/net/ipv4/tcp_early_demux"
"""0 where replies are routed before a socket is looked for: AWS wants that for such pods."""
_LOCAL_PORTS = "/proc/sys/net/ipv4/ip_local_port_range"
"""First and last port of connections that the host opens, for IPv6 too."""

_FRA_IP_PROTO, _FRA_DPORT_RANGE = 22, 24  # linux/fib_rules.h, since Linux 4.17
_PORT_RANGE = struct.Struct("=HH")
_LAST_PORT = 65534
"""The last port that a rule can name: the kernel refuses a range up to 65535."""
_LOCAL_TABLE = 255
_OF_EVERY_HOST = frozenset({253, 254, _LOCAL_TABLE})
"""The tables default, main and local: a rule that leads to one is for no branch interface."""
_LOOK = "look at the host's policy rules"
_OURS = attribute(FRA_PROTOCOL, bytes([OWN_PROTOCOL]))


@dataclass(frozen=True, slots=True)
class BranchRule:
    """One of the two policy rules for `address`."""

    address: IPAddress
    preference: int
    interface: str
    """Where the packet comes from: `lo` for the host's own processes, else the pod's veth."""
    table: int
    reply_ports: tuple[int, int] | None
    """The first and the last port that a reply may go to; None in the rule for requests."""

    def message(self) -> bytes:
        """Return the body of a request about this rule."""
        family, bits = _family(self.address).number, self.address.max_prefixlen
        to_bits, from_bits = (bits, 0) if self.reply_ports is None else (0, bits)
        kind = FRA_DST if self.reply_ports is None else FRA_SRC
        ports = (
            b""
            if self.reply_ports is None
            else attribute(_FRA_DPORT_RANGE, _PORT_RANGE.pack(*self.reply_ports))
        )
        return (
            HEADER.pack(family, to_bits, from_bits, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
            + numbers({FRA_PRIORITY: self.preference, FRA_TABLE: self.table})
            + attribute(kind, self.address.packed)
            + attribute(FRA_IIFNAME, self.interface.encode() + b"\0")
            + attribute(_FRA_IP_PROTO, bytes([socket.IPPROTO_TCP]))
            + ports
            + _OURS
        )

    def add(self, netlink: Netlink) -> None:
        """Add the rule, which is not there. Raises `RulesError`."""
        with wrap_oserror(f"add the {self}"):
            netlink.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, self.message())

    def remove(self, netlink: Netlink) -> None:
        """Remove the rule, if it is there.

        Raises `RulesError`, also where the kernel would remove somebody else's.
        """
        request = self.message()
        with wrap_oserror(f"remove the {self}"):
            for found in list_rules(netlink, _family(self.address).number):
                if would_take(request, found):
                    if parse(found) != self:
                        raise RulesError(
                            f"cannot remove the {self}: one of somebody else, with more"
                            " conditions, comes before it; remove that one first"
                        )
                    netlink.request(RTM_DELRULE, 0, request)
                    return

    def __str__(self) -> str:
        way = f"{self.address} from the host" if self.reply_ports is None else f"{self.address}"
        return f"policy rule {self.preference} for {way}, iif {self.interface}"


def parse(found: bytes) -> BranchRule | None:
    """Read a rule of the kernel's listing; None for one that this agent did not add."""
    if _OURS not in found:
        return None
    known = dict(attributes(found[HEADER.size :]))
    packed = known.get(FRA_DST) or known.get(FRA_SRC) or b""
    ports = known.get(_FRA_DPORT_RANGE)
    if len(packed) not in {4, 16} or (ports is not None and len(ports) != _PORT_RANGE.size):
        return None
    rule = BranchRule(
        address=ip_address(packed),
        preference=preference(found),
        interface=_interface(known),
        table=lookup(found) or 0,
        reply_ports=None if ports is None else _PORT_RANGE.unpack(ports),
    )
    return rule if rule_meaning(found) == rule_meaning(rule.message()) else None


class BranchInterfaces:
    """Keeps these rules for the pods' addresses, in the netns of the thread that calls.

    Nothing here raises: what fails is in the log once, and tried again at the next look at
    a pod. Where `active` is false a look costs the reading of one file in /proc/sys.
    """

    def __init__(self, *, wanted: bool) -> None:
        """`wanted`: the setting AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE."""
        self._wanted = wanted
        self._failure = ""
        """The log's last warning."""
        self._leaving: set[IPAddress] = set()
        """Addresses whose rules could not be removed."""
        self.active = True
        """Whether this is a node that may have such pods, or rules of an earlier agent's."""

    def look(self) -> bool:
        """Return whether this is a node that may have such pods; where it is not, remove all rules.

        `ensure` does so first.
        """
        if self._wanted and _early_demux_is_off():
            self.active = True
            return True
        if self.active and self._attempt(remove_rules):
            self._leaving.clear()
            self.active = False
        return False

    def ensure(self, addresses: Collection[IPAddress]) -> tuple[str, ...]:
        """Have the rules for all `addresses` of one pod; return what differed before."""
        changes: list[str] = []
        if self.look():
            self._leaving.difference_update(addresses)
            self._attempt(lambda netlink: changes.extend(self._repair(netlink, addresses)))
        return tuple(changes)

    def remove(self, addresses: Collection[IPAddress]) -> None:
        """Remove the rules for `addresses`."""
        if self.active and addresses:
            self._leaving.update(addresses)
            self._attempt(self._remove_leaving)

    def prune(self, kept: Collection[IPAddress]) -> None:
        """Remove the rules for all addresses but those in `kept`."""
        if self.active:
            self._attempt(lambda netlink: self._prune(netlink, kept))

    def _repair(self, netlink: Netlink, addresses: Collection[IPAddress]) -> Iterator[str]:
        self._remove_leaving(netlink)
        for family in Family:
            mine = [each for each in addresses if each.version == family.version]
            if mine:
                yield from _repair(netlink, _rules(netlink, family), mine)

    def _prune(self, netlink: Netlink, kept: Collection[IPAddress]) -> None:
        found = {rule.address for rule in _installed(netlink)}
        self._leaving |= found.difference(kept)
        self._remove_leaving(netlink)

    def _remove_leaving(self, netlink: Netlink) -> None:
        if self._leaving:
            remove_rules(netlink, self._leaving.__contains__)
            self._leaving.clear()

    def _attempt(self, work: Callable[[Netlink], object]) -> bool:
        """Do `work`; return whether that succeeded."""
        try:
            with wrap_oserror(_LOOK), Netlink(socket.NETLINK_ROUTE) as netlink:
                work(netlink)
        except RulesError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning(
                    "probes of pods with an AWS branch interface may fail; tried again",
                    reason=str(error),
                )
            return False
        self._failure = ""
        return True


def remove_rules(
    netlink: Netlink, chosen: Callable[[IPAddress], bool] = lambda _: True
) -> list[str]:
    """Remove this agent's rules for the addresses that are `chosen`; return what went.

    Raises ``OSError`` and `RulesError`.
    """
    rules = [rule for rule in _installed(netlink) if chosen(rule.address)]
    for rule in rules:
        rule.remove(netlink)
    return [str(rule) for rule in rules]


def _installed(netlink: Netlink) -> list[BranchRule]:
    listing = [found for family in Family for found in _rules(netlink, family)]
    return [rule for rule in map(parse, listing) if rule is not None]


def _rules(netlink: Netlink, family: Family) -> list[bytes]:
    try:
        return list_rules(netlink, family.number)
    except OSError as error:
        if error.errno in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:  # a kernel without IPv6
            return []
        raise


def _repair(
    netlink: Netlink, listing: list[bytes], addresses: Collection[IPAddress]
) -> Iterator[str]:
    """Yield what differed, after it was put right. Raises ``OSError`` and `RulesError`."""
    installed = [rule for rule in map(parse, listing) if rule is not None]
    for address in addresses:
        desired = _desired(netlink, listing, address)
        ours = [rule for rule in installed if rule.address == address]
        for rule in ours:
            if rule not in desired:
                rule.remove(netlink)
                yield f"{rule} is not wanted"
        for rule in desired:
            if rule not in ours:
                rule.add(netlink)
                yield f"{rule} is missing"


def _desired(
    netlink: Netlink, listing: Iterable[bytes], address: IPAddress
) -> tuple[BranchRule, ...]:
    """The rules for `address`: none where it has no branch interface."""
    family = _family(address).number
    for found in listing:
        veth = _interface(dict(attributes(found[HEADER.size :])))
        table = lookup(found)
        if not veth or table is None or table in _OF_EVERY_HOST or _OURS in found:
            continue
        if not _leads_to(address, list_routes(netlink, family, table), veth):
            continue
        before = preference(found) - 1
        if before < 0:
            raise RulesError(
                f"the policy rule iif {veth} has preference 0: there is no place before it for"
                f" the probes of {address}"
            )
        return (
            BranchRule(address, before, "lo", table, None),
            BranchRule(address, before, veth, _LOCAL_TABLE, _local_ports()),
        )
    return ()


def _leads_to(address: IPAddress, routes: Iterable[bytes], link: str) -> bool:
    """Whether a route to nothing but `address` leads to the interface `link`."""
    for route in routes:
        known = dict(attributes(route[HEADER.size :]))
        if header(route)[1] == address.max_prefixlen and known.get(RTA_DST) == address.packed:
            try:
                return number(route, RTA_OIF, 0) == socket.if_nametoindex(link)
            except OSError:  # it is gone
                return False
    return False


def _interface(known: dict[int, bytes]) -> str:
    return known.get(FRA_IIFNAME, b"").rstrip(b"\0").decode(errors="replace")


def _early_demux_is_off() -> bool:
    try:
        with open(_EARLY_DEMUX) as file:
            return file.read().strip() == "0"
    except OSError:  # a kernel without the setting
        return False


def _local_ports() -> tuple[int, int]:
    with open(_LOCAL_PORTS) as file:
        try:
            first, last = map(int, file.read().split())
        except ValueError as error:
            raise MalformedError from error
    return first, min(last, _LAST_PORT)


def _family(address: IPAddress) -> Family:
    return Family.V4 if address.version == 4 else Family.V6
