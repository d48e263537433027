"""What the kernel has of the host's table for health probes.

It is asked for single things, by name: neither others' rules nor the number of
addresses make that slower.
"""

import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address

from nodeagent.linux.netlink import Netlink, attribute, attributes
from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RedirectError, translated
from nodeagent.netfilter.generation import generation
from nodeagent.netfilter.libnftables import Library
from nodeagent.netfilter.nfnetlink import NETLINK_NETFILTER
from nodeagent.netfilter.scratch import in_scratch_namespace
from nodeagent.probes.nft_rules import (
    CHAIN,
    ISTIO_CHAIN,
    OWNER,
    SETS,
    TABLE,
    ProbeRules,
    render_table,
)

# linux/netfilter/nf_tables.h and nfnetlink.h
_NFNL_SUBSYS_NFTABLES = 10 << 8
_GETTABLE = _NFNL_SUBSYS_NFTABLES | 1
_GETCHAIN = _NFNL_SUBSYS_NFTABLES | 4
_GETRULE = _NFNL_SUBSYS_NFTABLES | 7
_GETSET = _NFNL_SUBSYS_NFTABLES | 10
_GETSETELEM = _NFNL_SUBSYS_NFTABLES | 13
_NFPROTO_INET = 1
_NESTED = 0x8000
_HEADER = struct.pack("=BBH", _NFPROTO_INET, 0, 0)
_IN_TABLE = _HEADER + attribute(1, TABLE.encode() + b"\0")  # every message names it as attribute 1

_TABLE_FLAGS, _TABLE_USE, _TABLE_USERDATA = 2, 3, 6
_CHAIN_HANDLE, _CHAIN_NAME, _CHAIN_COUNTERS = 2, 3, 8
_RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION = 3, 4, 6
# The library's notes, and the kernel's choice of an algorithm and count of elements:
# they say nothing of what the set is.
_SET_USERDATA, _SET_HANDLE, _SET_ALGORITHM, _SET_COUNT = 13, 16, 19, 20
_SET_NAME, _ELEMENTS = 2, 3
_LIST_ELEMENT, _ELEMENT_KEY, _ELEMENT_USERDATA = 1, 1, 6
_DATA_VALUE = 1
_COMMENT = 0
_ADDRESS_SIZES = {4, 16}
_COUNTER = attribute(1, b"counter\0")  # NFTA_EXPR_NAME comes first

_Attributes = Mapping[int, bytes]

Standing = Mapping[str, object]
"""What stands of the table, by what it is called, without handles, counts and addresses."""


@lru_cache(maxsize=4)
def reference(rules: ProbeRules) -> Standing:
    """What `ProbeTable.standing` gives where `rules` are true. Raises `RedirectError`.

    Found out by doing it, in a namespace that ends with the thread that it is done in.
    """

    def done() -> Standing:
        table = ProbeTable()
        try:
            table.apply(render_table(rules))
            return table.standing()
        finally:
            table.close()

    return in_scratch_namespace(done)


def differences(have: Standing, want: Standing) -> tuple[str, ...]:
    """Say what has to change in `have` to make it `want`."""
    if not have:
        return (f"table {TABLE} is missing",)
    parts = [*want, *(part for part in have if part not in want)]
    return tuple(f"{part} differs" for part in parts if have.get(part) != want.get(part))


class ProbeTable:
    """A connection to the table, in the network namespace of the thread that makes it.

    Any thread may use it then, one at a time, until `close`. It is kept because
    the kernel makes whoever closes such a socket wait until it has let go of
    everything that was deleted: 8 to 24 ms, where the deletion takes 0.06.
    Everything raises `RedirectError`; close it then.
    """

    def __init__(self) -> None:
        with translated("open a netfilter socket"):
            self._netlink = _Nfnetlink(NETLINK_NETFILTER)
        try:
            self._library = Library()
        except RedirectError:
            self._netlink.close()
            raise

    def close(self) -> None:
        """Give the sockets back. Idempotent."""
        self._netlink.close()
        self._library.close()

    def apply(self, text: str) -> None:
        """Hand `text` to the kernel as one transaction; nothing has changed if it raises."""
        try:
            self._library.apply(text)
        except RedirectError as error:
            reason = str(error).partition("\n")[0].rpartition("Error: ")[2]
            raise RedirectError(f"nftables refused: {reason or 'no reason given'}") from error

    def generation(self) -> int:
        """What stays the same for as long as nobody changes any rules or sets of the host."""
        return generation(self._netlink)

    def standing(self) -> Standing:
        """Read all but the addresses; empty where there is no such table."""
        with translated("read the host's rules for probes"):
            return dict(self._parts())

    def owner(self, address: IPAddress) -> str | None:
        """Look up one address, for 0.02 ms however many there are; None: it is in no set."""
        key = attribute(_ELEMENT_KEY | _NESTED, attribute(_DATA_VALUE, address.packed))
        elements = attribute(_ELEMENTS | _NESTED, attribute(_LIST_ELEMENT | _NESTED, key))
        with translated("look an address up in the host's set for probes"):
            found = self._netlink.get(_GETSETELEM, _in_set(address.version) + elements)
        return None if found is None else dict(_elements(found)).get(address)

    def owners(self) -> dict[IPAddress, str]:
        """Read all addresses; 2 to 4 ms for 1,000."""
        found: dict[IPAddress, str] = {}
        with translated("read the host's sets for probes"):
            for version in SETS:
                if self._netlink.get(_GETSET, _in_set(version)) is not None:
                    for body in self._netlink.dump(_GETSETELEM, _in_set(version)):
                        found.update(_elements(body))
        return found

    def _parts(self) -> Iterator[tuple[str, object]]:
        body = self._netlink.get(_GETTABLE, _IN_TABLE)
        if body is None:
            return
        table = _attributes(body)
        yield "layout version", table.get(_TABLE_USERDATA)
        yield "flags of the table", table.get(_TABLE_FLAGS)
        yield "number of chains, sets and objects", table[_TABLE_USE]
        for chain in (CHAIN, ISTIO_CHAIN):
            request = _IN_TABLE + attribute(_CHAIN_NAME, chain.encode() + b"\0")
            if (body := self._netlink.get(_GETCHAIN, request)) is not None:
                yield f"chain {chain}", _without(_attributes(body), _CHAIN_HANDLE, _CHAIN_COUNTERS)
        for number, body in enumerate(self._netlink.dump(_GETRULE, _IN_TABLE), start=1):
            yield f"rule {number}", without_counters(body)
        for version, name in SETS.items():
            if (body := self._netlink.get(_GETSET, _in_set(version))) is not None:
                yield (
                    f"set {name}",
                    _without(
                        _attributes(body), _SET_HANDLE, _SET_USERDATA, _SET_ALGORITHM, _SET_COUNT
                    ),
                )


class _Nfnetlink(Netlink):
    """A netlink socket that lasts."""

    def close(self) -> None:
        self._socket.close()


def _in_set(version: int) -> bytes:
    return _IN_TABLE + attribute(_SET_NAME, SETS[version].encode() + b"\0")


def _elements(body: bytes) -> Iterator[tuple[IPAddress, str]]:
    for _, data in attributes(_attributes(body).get(_ELEMENTS, b"")):
        element = dict(attributes(data))
        key = dict(attributes(element.get(_ELEMENT_KEY, b""))).get(_DATA_VALUE, b"")
        # A set that is not ours may have our set's name, and ports in it, or a catch-all.
        if len(key) in _ADDRESS_SIZES:
            yield ip_address(key), _comment(element.get(_ELEMENT_USERDATA, b""))


def _comment(userdata: bytes) -> str:
    while len(userdata) >= 2:
        kind, length = userdata[:2]
        if kind == _COMMENT:
            text = userdata[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
            return text if OWNER.fullmatch(text) else ""
        userdata = userdata[2 + length :]
    return ""


def without_counters(body: bytes) -> bytes:
    """What a rule says, of the kernel's answer about it: no counters, and no handle."""
    rule = _attributes(body)
    parts = list(_without(rule, _RULE_HANDLE, _RULE_POSITION, _RULE_EXPRESSIONS).values())
    for _, expression in attributes(rule.get(_RULE_EXPRESSIONS, b"")):
        parts.append(_COUNTER if expression.startswith(_COUNTER) else expression)
    return b"".join(parts)


def _attributes(body: bytes) -> _Attributes:
    return dict(attributes(body[len(_HEADER) :]))


def _without(attributes: _Attributes, *kinds: int) -> _Attributes:
    return {kind: payload for kind, payload in attributes.items() if kind not in kinds}
